"""Load a Hugging Face checkpoint: every rank reads only its own slices of the safetensors files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import parameters_of
from megarlhf.parallel.topology import Topology


class HuggingFaceFiles:
    """The tensors of a Hugging Face directory, by name, opened lazily.

    Raises:
        UserError: No safetensors files, or an index that does not parse or names a missing file.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open: dict[Path, Any] = {}
        self.file_of = self._find()

    def _find(self) -> dict[str, Path]:
        index = self.directory / "model.safetensors.index.json"
        if index.is_file():
            try:
                names = json.loads(index.read_text())["weight_map"]
            except (ValueError, KeyError) as error:
                raise UserError(f"the index does not parse: {error!r}", where=str(index)) from None
            missing = sorted({f for f in names.values() if not (self.directory / f).is_file()})
            if missing:
                raise UserError(
                    f"shards named by the index are missing: {', '.join(missing)}",
                    where=str(index),
                    fix="copy the missing files into the directory",
                )
            return {name: self.directory / file for name, file in names.items()}
        files = sorted(self.directory.glob("*.safetensors"))
        if not files:
            raise UserError("there are no safetensors files", where=str(self.directory))
        return {name: file for file in files for name in self._handle(file).keys()}  # noqa: SIM118

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            try:
                self._open[file] = safe_open(file, framework="pt")
            except SafetensorError as error:
                raise UserError(
                    f"not a whole safetensors file ({error})",
                    where=str(file),
                    fix="copy or download it again",
                ) from None
        return self._open[file]

    def slice_of(self, name: str) -> Any:
        """A lazily read tensor: index it to read only those bytes."""
        if name not in self.file_of:
            raise UserError(
                f"the tensor {name} is missing",
                where=str(self.directory),
                fix="check that config.json and the weights belong together",
            )
        file = self.file_of[name]
        try:
            return self._handle(file).get_slice(name)
        except SafetensorError as error:
            raise UserError(
                f"the tensor {name} cannot be read, though the index says it is here ({error})",
                where=str(file),
                fix="copy the index and its shards again, from one place",
            ) from None


@torch.no_grad()
def load_huggingface(
    spec: ModelSpec, topology: Topology, rank: int, chunks: Sequence[torch.nn.Module]
) -> None:
    """Set this rank's parameters from the spec's directory, reading only what it holds.

    Args:
        spec: The model.
        topology: Its layout.
        rank: This rank.
        chunks: This rank's model chunks (not wrapped).

    Raises:
        UserError: A tensor is missing or has another shape than the configuration says.
    """
    files = HuggingFaceFiles(spec.path)
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
        if is_new and parameter.sources[0] not in files.file_of:
            _initialize_head(target)
            continue
        for piece in parameter.pieces:
            name = parameter.sources[piece.source]
            source = files.slice_of(name)
            expected = spec.tensors[name]
            if tuple(source.get_shape()) != expected:
                raise UserError(
                    f"the tensor {name} has shape {tuple(source.get_shape())}, "
                    f"config.json implies {expected}",
                    where=str(files.file_of[name]),
                )
            target[piece.local.slices].copy_(source[piece.hf.slices])
    left = [name for names in live for name in names]
    if left:
        raise ValueError(f"parameters without an entry in the layout map: {left}")


def _initialize_head(weight: torch.Tensor) -> None:
    """A new scalar head: normal with standard deviation 1 / (H + 1), the same on every rank."""
    values = torch.empty(weight.shape, dtype=torch.float32)
    values.normal_(std=1 / (weight.shape[1] + 1), generator=torch.Generator().manual_seed(0))
    weight.copy_(values)
