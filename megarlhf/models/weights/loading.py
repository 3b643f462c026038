"""Load a checkpoint: every rank reads only its own slices of the files.

A Hugging Face directory, or what `tools/checkpoint_convert` made of one: Megatron's format beside the
same ``config.json``.
"""

import logging
from collections.abc import Sequence

import torch

from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights import fingerprint
from megarlhf.models.weights.finite import is_finite
from megarlhf.models.weights.huggingface_files import HuggingFaceFiles
from megarlhf.models.weights.layout import parameters_of
from megarlhf.models.weights.megatron_files import MegatronFiles
from megarlhf.models.weights.megatron_metadata import is_megatron
from megarlhf.parallel.topology import Topology

logger = logging.getLogger(__name__)

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

WeightFiles = HuggingFaceFiles | MegatronFiles


def open_weights(spec: ModelSpec) -> WeightFiles:
    """The tensors in a model's directory, of whatever format it is.

    Raises:
        UserError: There are none, or half of a checkpoint.
    """
    if is_megatron(spec.path):
        return MegatronFiles(spec.path, spec)
    return HuggingFaceFiles(spec.path)


def check_names(spec: ModelSpec, files: WeightFiles) -> None:
    """The files hold the model's tensors, each of its shape, and no others.

    Raises:
        UserError: A tensor is missing, has another shape than the configuration says, or is unknown.
    """
    for name, expected in spec.tensors.items():
        if name not in files.tensors:
            if spec.has_new_head and name == f"{spec.scalar_head}.weight":
                continue
            raise UserError(
                f"the tensor {name} is missing",
                where=str(files.directory),
                fix="check that config.json and the weights belong together",
            )
        shape = files.tensors[name].shape
        if shape != expected:
            raise UserError(
                f"the tensor {name} has shape {shape}, config.json implies {expected}",
                where=files.where(name),
                fix="check that config.json and the weights belong together",
            )
    unknown = [n for n in files.tensors if n not in spec.tensors and not _is_ignored(spec, n)]
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise UserError(
            f"unexpected tensors, which config.json does not imply: {', '.join(unknown[:3])}{more}",
            where=files.where(unknown[0]),
            fix="check that config.json and the weights belong together, or remove the tensors",
        )


def check_tied(spec: ModelSpec, files: WeightFiles) -> None:
    """Embeddings that are tied, and in the files twice all the same, are alike.

    Hugging Face would not tie them if they were not, other programs would.

    Raises:
        UserError: They are not.
    """
    if not spec.tied or _HEAD not in files.tensors:
        return
    with files.rows() as rows:
        prints = [fingerprint.of_rows(rows, name) for name in (_HEAD, _EMBEDDING)]
    if prints[0] != prints[1]:
        raise UserError(
            f"config.json ties {_HEAD} to {_EMBEDDING}, but they are different tensors",
            where=files.where(_HEAD),
            fix=f"set tie_word_embeddings to false if both are the model's, or remove {_HEAD}",
        )


def _is_ignored(spec: ModelSpec, name: str) -> bool:
    """Tensors that Hugging Face's model of this configuration does not use either."""
    if name.endswith(".rotary_emb.inv_freq"):  # computed; old checkpoints have it
        return True
    if name == _HEAD:
        return spec.tied or spec.scalar_head is not None
    layer = name.removeprefix("model.layers.").split(".")[0]
    is_draft = layer.isdigit() and int(layer) >= spec.num_layers  # multi-token prediction
    return is_draft and bool(spec.hf_config.get("num_nextn_predict_layers"))


@torch.no_grad()
def load_pretrained(
    spec: ModelSpec, topology: Topology, rank: int, chunks: Sequence[torch.nn.Module]
) -> None:
    """Set this rank's parameters from the spec's directory, reading only what it holds.

    Where the directory has a fingerprint, the tensors are checked against it, each by one rank.

    Args:
        spec: The model.
        topology: Its layout.
        rank: This rank.
        chunks: This rank's model chunks (not wrapped).

    Raises:
        UserError: See `check_names` and `check_tied`; or a tensor is not the one that the fingerprint
            was taken of.
    """
    files = open_weights(spec)
    check_names(spec, files)
    check_fingerprints(files, list(spec.tensors)[rank :: topology.world])
    if rank == 0:
        check_tied(spec, files)
    live = [dict(chunk.named_parameters()) for chunk in chunks]
    for parameter in parameters_of(spec, topology, rank):
        target = live[parameter.chunk].pop(parameter.name)
        if tuple(target.shape) != parameter.shape:
            raise ValueError(
                f"{parameter.name}: the layout map says {parameter.shape}, "
                f"Megatron built {tuple(target.shape)}"
            )
        target.zero_()  # padding stays zero
        is_new = spec.has_new_head and parameter.sources == (f"{spec.scalar_head}.weight",)
        if is_new and parameter.sources[0] not in files.tensors:
            _initialize_head(target)
            continue
        for piece in parameter.pieces:
            name = parameter.sources[piece.source]
            values = files.slice_of(name)[piece.hf.slices]
            if not is_finite(values):
                logger.warning("%s: the tensor %s has NaN or Inf in it", files.where(name), name)
            target[piece.local.slices].copy_(values)
    left = [name for names in live for name in names]
    if left:
        raise ValueError(f"parameters without an entry in the layout map: {left}")


def check_fingerprints(files: WeightFiles, names: Sequence[str]) -> None:
    """Some of the tensors are those that the directory's fingerprint, if there is one, was taken of.

    Raises:
        UserError: One is not.
    """
    expected = fingerprint.read(files.directory)
    if expected is None:
        return
    with files.rows() as rows:
        for name in names:
            if name in files.tensors:
                fingerprint.check(
                    name, fingerprint.of_rows(rows, name), expected.get(name), files.directory
                )


def _initialize_head(weight: torch.Tensor) -> None:
    """A new scalar head: normal with standard deviation 1 / (H + 1), the same on every rank."""
    values = torch.empty(weight.shape, dtype=torch.float32)
    values.normal_(std=1 / (weight.shape[1] + 1), generator=torch.Generator().manual_seed(0))
    weight.copy_(values)
