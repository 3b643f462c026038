"""A checkpoint of either kind, opened."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.loading import WeightFiles, check_names, check_tied, open_weights
from megarlhf.models.weights.megatron_metadata import is_megatron

HUGGING_FACE, MEGATRON = "Hugging Face", "Megatron"


@dataclass(frozen=True)
class Checkpoint:
    """A directory with a model's weights.

    Attributes:
        spec: The model; its path is the directory.
        companions: Where its configuration and tokenizer are.
        kind: `HUGGING_FACE` or `MEGATRON`.
        files: The tensors.
    """

    spec: ModelSpec
    companions: Path
    kind: str
    files: WeightFiles

    @property
    def directory(self) -> Path:
        """Where the weights are."""
        return self.spec.path

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Of every tensor of the model."""
        return {name: self.files.tensors[name].dtype for name in self.spec.tensors}

    @property
    def left_out(self) -> list[str]:
        """Tensors in the files that the model does not use."""
        return [name for name in self.files.tensors if name not in self.spec.tensors]


def open_checkpoint(
    directory: Path,
    *,
    kind: str | None = None,
    config: Path | None = None,
    scalar_head: str | None = None,
) -> Checkpoint:
    """Open a directory and look at everything but the tensors' bytes; at those of tied ones, too.

    Args:
        directory: Which.
        kind: It must be of this kind.
        config: A Hugging Face directory to take configuration and tokenizer from instead.
        scalar_head: The model has a scalar head of this name, which the configuration does not say.

    Raises:
        UserError: It is not there, or not whole, of the other kind, or not what its
            configuration says.
    """
    if not directory.is_dir():
        raise UserError("no such directory", where=str(directory))
    above = directory / "latest_checkpointed_iteration.txt"
    if above.is_file():
        raise UserError(
            "Megatron's checkpoints are in the directories in this one",
            where=str(directory),
            fix=f"give one of them; the latest is of iteration {above.read_text().strip()}",
        )
    found = MEGATRON if is_megatron(directory) else HUGGING_FACE
    if kind is not None and found != kind:
        raise UserError(
            f"a checkpoint of {found}'s kind, not {kind}'s",
            where=str(directory),
            fix=f"give a {kind} checkpoint, or use the command for the other direction",
        )
    companions = config or directory
    if found == MEGATRON and not (companions / "config.json").is_file():
        raise UserError(
            "no config.json beside the Megatron checkpoint",
            where=str(companions),
            fix="give the Hugging Face model that it was made from: --hf DIR",
        )
    spec = replace(ModelSpec.read(companions, scalar_head=scalar_head), path=directory)
    files = open_weights(spec)
    check_names(spec, files)
    check_tied(spec, files)
    missing = [name for name in spec.tensors if name not in files.tensors]
    if missing:  # a head, which a run would make itself
        raise UserError(f"the tensor {missing[0]} is missing", where=str(directory))
    return Checkpoint(spec, companions, found, files)
