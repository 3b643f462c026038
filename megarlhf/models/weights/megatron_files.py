"""The weights in a Megatron checkpoint (torch_dist), read where they lie as Hugging Face tensors."""

import json
import os
import pickle
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights import torch_archive
from megarlhf.models.weights.megatron_names import global_parameters
from megarlhf.models.weights.megatron_runs import Chunk, stored_tensors
from megarlhf.models.weights.operations import Rect, Shape
from megarlhf.models.weights.row_files import BLOCK_BYTES, RowFiles, StoredTensor

LAST_FILE = "metadata.json"  # what Megatron writes last: with it a checkpoint is whole
_COPY_AGAIN = "copy the checkpoint again, or convert it again"


def is_megatron(directory: Path) -> bool:
    """Whether a directory holds a Megatron checkpoint, or half of one."""
    return any((directory / name).is_file() for name in (LAST_FILE, ".metadata", "common.pt"))


class MegatronFiles:
    """A model's tensors in a Megatron checkpoint, under the names they have for Hugging Face.

    Args:
        directory: The checkpoint.
        spec: The model.

    Raises:
        UserError: No whole checkpoint, or none of Megatron's torch_dist format.
    """

    def __init__(self, directory: Path, spec: ModelSpec) -> None:
        self.directory, self.spec = directory, spec
        self._metadata = read_metadata(directory)

    @cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Where every tensor's bytes are; one that is not there as a whole is left out.

        Raises:
            UserError: A file is missing, cut short or damaged.
        """
        keys = self._metadata.state_dict_metadata
        layers_apart = any(key.startswith("decoder.layers.0.") for key in keys)
        parameters = global_parameters(self.spec, layers_apart=layers_apart)
        wanted = {parameter.key for parameter in parameters} & keys.keys()
        return stored_tensors(parameters, {key: self._chunks(key) for key in wanted})

    def _chunks(self, key: str) -> list[Chunk]:
        stored = self._metadata.state_dict_metadata[key]
        return [
            self._chunk(key, tuple(chunk.offsets), tuple(chunk.sizes), stored.properties.dtype)
            for chunk in stored.chunks
        ]

    def _chunk(self, key: str, offsets: Shape, sizes: Shape, dtype: torch.dtype) -> Chunk:
        place = self._places[key, offsets]
        path = self.directory / place.relative_path
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise UserError("the file is missing", where=str(path), fix=_COPY_AGAIN) from None
        if place.offset + place.length > size:
            raise UserError(
                f"the file ends before the tensor {key} ({size} bytes)",
                where=str(path),
                fix=_COPY_AGAIN,
            )
        with path.open("rb") as file:
            offset = torch_archive.find_tensor(file, place.offset, place.length, sizes, dtype)
        if offset is None:
            raise UserError(
                f"the bytes at {place.offset} are not the tensor {key} of shape {list(sizes)}",
                where=str(path),
                fix=_COPY_AGAIN,
            )
        ranges = tuple((at, at + size) for at, size in zip(offsets, sizes, strict=True))
        return Chunk(Rect(ranges), dtype, place.relative_path, offset)

    @cached_property
    def _places(self) -> dict[tuple[str, Shape], Any]:
        return {
            (index.fqn, tuple(index.offset)): place
            for index, place in self._metadata.storage_data.items()
            if index.offset is not None
        }

    @property
    def file_of(self) -> Mapping[str, StoredTensor]:
        """The names of the tensors that are there."""
        return self.tensors

    def rows(self) -> RowFiles:
        """To read the tensors by rows."""
        return RowFiles(self.directory, self.tensors)

    def where(self, name: str) -> str:
        """What holds a tensor."""
        return str(self.directory)

    def slice_of(self, name: str) -> "_Slice":
        """A lazily read tensor: index it to read it, a few rows at a time."""
        if name not in self.tensors:
            raise UserError(
                f"the tensor {name} is missing",
                where=str(self.directory),
                fix="check that config.json and the weights belong together",
            )
        return _Slice(self, name)


class _Slice:
    """See `MegatronFiles.slice_of`."""

    def __init__(self, files: MegatronFiles, name: str) -> None:
        self._files, self._name = files, name
        self._tensor = files.tensors[name]

    def get_shape(self) -> list[int]:
        """Of the whole tensor."""
        return list(self._tensor.shape)

    def __getitem__(self, slices: tuple[slice, ...]) -> torch.Tensor:
        tensor, rows = self._tensor, slices[0]
        found = torch.empty([s.stop - s.start for s in slices], dtype=tensor.dtype, device="cpu")
        most = max(1, BLOCK_BYTES // max(tensor.row_bytes, 1))
        with self._files.rows() as files:
            for start in range(rows.start, rows.stop, most):
                stop = min(start + most, rows.stop)
                block = torch.empty((stop - start, *tensor.shape[1:]), dtype=tensor.dtype)
                raw = block.view(stop - start, -1).view(torch.uint8).numpy()
                files.read_rows(self._name, start, stop, raw)
                found[start - rows.start : stop - rows.start] = block[(slice(None), *slices[1:])]
        return found


def read_metadata(directory: Path) -> Any:
    """What `torch.distributed.checkpoint` wrote about the files.

    Raises:
        UserError: No whole checkpoint of the torch_dist format.
    """
    from torch.distributed.checkpoint import FileSystemReader

    last = directory / LAST_FILE
    if not last.is_file():
        raise UserError(
            f"not a whole checkpoint: {LAST_FILE} is missing",
            where=str(directory),
            fix="its writing was cut short: write it again, or go back to the one before",
        )
    try:
        backend = json.loads(last.read_text())["sharded_backend"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"does not parse: {error!r}", where=str(last), fix=_COPY_AGAIN) from None
    if backend != "torch_dist":
        raise UserError(
            f"a checkpoint in the format {backend!r}",
            where=str(last),
            fix="save it with --ckpt-format torch_dist",
        )
    try:
        return FileSystemReader(os.fspath(directory)).read_metadata()
    except (OSError, EOFError, pickle.UnpicklingError, AttributeError, KeyError) as error:
        raise UserError(
            f"does not parse: {error!r}", where=str(directory / ".metadata"), fix=_COPY_AGAIN
        ) from None


def content_metadata(directory: Path) -> dict[str, Any]:
    """What the writer noted about a checkpoint; empty where it noted nothing that is plain data."""
    file = directory / "common.pt"
    if not file.is_file():
        return {}
    try:
        common = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # other programs put their arguments there
        return {}
    return dict(common.get("content_metadata") or {})
