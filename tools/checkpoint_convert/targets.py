"""What is to be written, of either kind: files of known sizes, and where each tensor's rows go."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights import megatron_metadata
from megarlhf.models.weights.export import SHARD_BYTES
from megarlhf.models.weights.megatron_plan import plan_checkpoint
from megarlhf.models.weights.publishing import NewFile
from megarlhf.models.weights.row_files import StoredTensor, full_disk_is_an_error
from megarlhf.models.weights.safetensors_format import INDEX, index_of, plan_shards
from megarlhf.parallel.topology import Topology
from tools.checkpoint_convert import layouts


@dataclass(frozen=True)
class Target:
    """A checkpoint to be.

    Attributes:
        kind: To tell one target from another.
        files: That will hold the tensors.
        tensors: Where in them.
        finish: Writes into a directory what else makes it a checkpoint.
    """

    kind: str
    files: Sequence[NewFile]
    tensors: Mapping[str, StoredTensor]
    finish: Callable[[Path], None]

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def huggingface_target(spec: ModelSpec, dtypes: Mapping[str, torch.dtype]) -> Target:
    """Safetensors files, with an index if there are several."""
    shards = plan_shards({n: (dtypes[n], shape) for n, shape in spec.tensors.items()}, SHARD_BYTES)

    def finish(directory: Path) -> None:
        if len(shards) > 1:
            with full_disk_is_an_error(directory):
                (directory / INDEX).write_text(index_of(shards))

    tensors = {name: tensor for shard in shards for name, tensor in shard.tensors.items()}
    return Target(f"Hugging Face, {SHARD_BYTES}", shards, tensors, finish)


def megatron_target(
    spec: ModelSpec, topology: Topology, dtypes: Mapping[str, torch.dtype]
) -> Target:
    """The files of a layout's ranks."""
    plan = plan_checkpoint(spec, topology, dtypes)
    layout = layouts.describe(topology)

    def finish(directory: Path) -> None:
        megatron_metadata.write(directory, plan.metadata, {"layout": layout})

    return Target(f"Megatron, {layout}", plan.files, plan.tensors, finish)
