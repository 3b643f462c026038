"""What is in a checkpoint, or would be in one, in words."""

from collections import Counter
from collections.abc import Iterator

from megarlhf.models.weights import fingerprint, megatron_metadata
from megarlhf.models.weights.row_files import StoredTensor
from megarlhf.parallel.topology import Topology
from tools.checkpoint_convert import layouts
from tools.checkpoint_convert.checkpoints import MEGATRON, Checkpoint
from tools.checkpoint_convert.targets import Target

_WORDS = {
    "tensor": "tensor",
    "pipeline": "pipeline",
    "virtual_pipeline": "virtual pipeline",
    "expert": "expert",
}


def describe(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """Property and value, one a line."""
    spec = checkpoint.spec
    tensors = {name: checkpoint.files.tensors[name] for name in spec.tensors}
    yield "kind", checkpoint.kind
    if checkpoint.kind == MEGATRON:
        yield "written for", _layout(megatron_metadata.notes(checkpoint.directory).get("layout"))
    yield "architecture", spec.export_config["architectures"][0]
    yield from sizes(list(tensors.values()))
    yield "layers", str(spec.num_layers)
    if spec.num_experts:
        yield "experts", str(spec.num_experts)
    yield "vocabulary", f"{spec.vocab_size:,}"
    yield "embeddings", "tied" if spec.tied else "untied"
    if spec.scalar_head is not None:
        yield "scalar head", spec.scalar_head
    files = {run.file for tensor in tensors.values() for run in tensor.runs}
    yield "files", str(len(files))
    if checkpoint.left_out:
        yield "not used", ", ".join(checkpoint.left_out)
    prints = fingerprint.read(checkpoint.directory)
    yield "fingerprint", "none" if prints is None else fingerprint.of_model(prints)


def _layout(noted: object) -> str:
    if not isinstance(noted, dict):
        return "a layout that is not noted"
    return ", ".join(f"{_WORDS[key]} {size}" for key, size in noted.items() if key in _WORDS)


def sizes(tensors: list[StoredTensor]) -> Iterator[tuple[str, str]]:
    """How many there are, of which dtypes."""
    elements: Counter[str] = Counter()
    for tensor in tensors:
        elements[fingerprint.name_of(tensor.dtype)] += tensor.nbytes // tensor.dtype.itemsize
    yield "tensors", f"{len(tensors):,}"
    yield "parameters", f"{sum(elements.values()):,}"
    yield "dtype", ", ".join(f"{name} ({count:,})" for name, count in elements.most_common())
    yield "bytes", f"{sum(tensor.nbytes for tensor in tensors):,}"


def describe_plan(target: Target, topology: Topology | None) -> Iterator[tuple[str, str]]:
    """What a conversion would write, and how even the files are."""
    yield (
        "to",
        target.kind if topology is None else f"Megatron, {_layout(layouts.describe(topology))}",
    )
    yield from sizes(list(target.tensors.values()))
    largest = max(target.tensors, key=lambda name: target.tensors[name].nbytes)
    yield "largest", f"{largest}, {target.tensors[largest].nbytes:,} bytes"
    bytes_of = [file.nbytes for file in target.files]
    yield "files", str(len(bytes_of))
    yield "bytes a file", f"{min(bytes_of):,} to {max(bytes_of):,}"
