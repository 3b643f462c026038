"""The weights in a Megatron checkpoint (torch_dist), read where they lie as Hugging Face tensors."""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata

from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights import megatron_metadata, torch_archive
from megarlhf.models.weights.megatron_metadata import COPY_AGAIN
from megarlhf.models.weights.megatron_names import GlobalParameter, global_parameters, unfused
from megarlhf.models.weights.megatron_runs import Chunk, stored_tensors
from megarlhf.models.weights.operations import Rect, Vocabulary
from megarlhf.models.weights.row_files import BLOCK_BYTES, RowFiles, StoredTensor
from megarlhf.models.weights.safetensors_format import DTYPES

_OF_THE_MODEL = ("embedding.", "decoder.", "output_layer.")  # beside them: the optimizer's state


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
        content = megatron_metadata.read(directory)
        self._stored = {
            unfused(key): stored
            for key, stored in content.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata) and key.startswith(_OF_THE_MODEL)
        }
        self._places = {
            (unfused(index.fqn), tuple(index.offset)): place
            for index, place in content.storage_data.items()
            if index.offset is not None
        }

    @cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Where every tensor's bytes are; one that is not there as a whole is left out.

        Raises:
            UserError: A file is missing, cut short or damaged, or there is something that the model
                has not, or has in another shape.
        """
        layers_apart = any(key.startswith("decoder.layers.0.") for key in self._stored)
        parameters = global_parameters(self.spec, layers_apart=layers_apart)
        by_key = {parameter.key: parameter for parameter in parameters}
        self._check_keys(by_key)
        with ExitStack() as files:
            opened: dict[str, BinaryIO] = {}
            chunks = {
                key: [self._chunk(key, chunk, opened, files) for chunk in self._stored[key].chunks]
                for key in by_key.keys() & self._stored.keys()
            }
        return stored_tensors(parameters, chunks)

    def _check_keys(self, by_key: Mapping[str, GlobalParameter]) -> None:
        belong = "check that config.json and the weights belong together"
        unknown = sorted(self._stored.keys() - by_key.keys())
        if unknown:
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            raise UserError(
                f"unexpected tensors, which config.json does not imply: {', '.join(unknown[:3])}{more}",
                where=str(self.directory),
                fix=belong,
            )
        for key, stored in self._stored.items():
            shape, expected = tuple(stored.size), by_key[key].global_shape(1)
            if isinstance(by_key[key].operation, Vocabulary) and shape[0] > expected[0]:
                shape = (expected[0], *shape[1:])  # padded
            if shape != expected:
                raise UserError(
                    f"the tensor {key} has shape {shape}, config.json implies {expected}",
                    where=str(self.directory),
                    fix=belong,
                )
            if stored.properties.dtype not in DTYPES.values():
                raise UserError(
                    f"the tensor {key} has the dtype {stored.properties.dtype}",
                    where=str(self.directory),
                    fix=f"use weights that are not quantized: {', '.join(DTYPES)} are supported",
                )

    def _chunk(
        self,
        key: str,
        chunk: ChunkStorageMetadata,
        opened: dict[str, BinaryIO],
        files: ExitStack,
    ) -> Chunk:
        offsets, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
        dtype = self._stored[key].properties.dtype
        place = self._places.get((key, offsets))
        if place is None:
            raise UserError(
                f"the tensor {key} is not in any file at {list(offsets)}",
                where=str(self.directory / megatron_metadata.FILE),
                fix=COPY_AGAIN,
            )
        path = self.directory / place.relative_path
        if place.relative_path not in opened:
            try:
                opened[place.relative_path] = files.enter_context(path.open("rb"))
            except FileNotFoundError:
                raise UserError("the file is missing", where=str(path), fix=COPY_AGAIN) from None
        file = opened[place.relative_path]
        size = os.fstat(file.fileno()).st_size
        if place.offset + place.length > size:
            raise UserError(
                f"the file ends before the tensor {key} ({size} bytes)",
                where=str(path),
                fix=COPY_AGAIN,
            )
        offset = torch_archive.find_tensor(file, place.offset, place.length, sizes, dtype)
        if offset is None:
            raise UserError(
                f"the bytes at {place.offset} are not the tensor {key} of shape {list(sizes)}",
                where=str(path),
                fix=COPY_AGAIN,
            )
        ranges = tuple((at, at + size) for at, size in zip(offsets, sizes, strict=True))
        return Chunk(Rect(ranges), dtype, place.relative_path, offset)

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
