"""The safetensors format: eight bytes of length, a header in JSON, then the tensors' bytes.

See https://huggingface.co/docs/safetensors. The library writes only tensors that are in memory as a
whole; here a file's header is made first, and its tensors follow a few rows at a time.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from megarlhf.errors import UserError
from megarlhf.models.weights.operations import Shape
from megarlhf.models.weights.row_files import Run, StoredTensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {  # that models are computed in
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_COPY_AGAIN = "copy or download it again"


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of a file, its one run relative to the file's directory.

    Raises:
        UserError: The file is cut short or is no safetensors file, or a tensor's dtype is not one
            that models are computed in.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > size - 8:
                raise ValueError(f"{size} bytes, too few for its header")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        begin = 8 + length
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if begin + end != size:
            raise ValueError(f"{size} bytes instead of {begin + end}")
        return {name: _stored(file, name, begin, entry) for name, entry in header.items()}
    except (ValueError, struct.error, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"not a whole safetensors file ({error})", where=str(file), fix=_COPY_AGAIN
        ) from None


def _stored(file: Path, name: str, begin: int, entry: dict) -> StoredTensor:
    if entry["dtype"] not in DTYPES:
        raise UserError(
            f"the tensor {name} has the dtype {entry['dtype']}",
            where=str(file),
            fix=f"use weights that are not quantized: {', '.join(DTYPES)} are supported",
        )
    tensor = StoredTensor(DTYPES[entry["dtype"]], tuple(entry["shape"]))
    first, last = entry["data_offsets"]
    if first < 0 or last - first != tensor.nbytes:
        raise ValueError(f"the tensor {name} has {last - first} bytes instead of {tensor.nbytes}")
    return _whole(tensor, file.name, begin + first)


def _whole(tensor: StoredTensor, file: str, offset: int) -> StoredTensor:
    width = tensor.row_bytes
    return StoredTensor(
        tensor.dtype, tensor.shape, (Run(0, tensor.rows, 0, width, file, offset, width),)
    )


@dataclass(frozen=True)
class Shard:
    """A file that is to be written.

    Attributes:
        file: Its name.
        header: The bytes it begins with.
        tensors: What follows, and where.
        nbytes: Of the whole file.
    """

    file: str
    header: bytes
    tensors: dict[str, StoredTensor]
    nbytes: int

    @property
    def fixed(self) -> tuple[tuple[int, bytes]]:
        """What is in it beside the tensors' bytes, and where."""
        return ((0, self.header),)


def plan_file(file: str, tensors: Mapping[str, tuple[torch.dtype, Shape]]) -> Shard:
    """One file for tensors in their order."""
    return _shard(file, {name: StoredTensor(*kind) for name, kind in tensors.items()})


def plan_shards(tensors: Mapping[str, tuple[torch.dtype, Shape]], shard_bytes: int) -> list[Shard]:
    """Files of at most ``shard_bytes`` (but with one tensor at least) for tensors in their order."""
    groups: list[dict[str, StoredTensor]] = [{}]
    size = 0
    for name, (dtype, shape) in tensors.items():
        tensor = StoredTensor(dtype, shape)
        if groups[-1] and size + tensor.nbytes > shard_bytes:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += tensor.nbytes
    return [_shard(_file_name(i, len(groups)), group) for i, group in enumerate(groups)]


def _shard(file: str, tensors: Mapping[str, StoredTensor]) -> Shard:
    # Wider elements first, as the library has it, so that all are aligned.
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets, offset = {}, 0
    for name in order:
        tensor = tensors[name]
        offsets[name] = offset
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    return Shard(
        file,
        struct.pack("<Q", len(text)) + text,
        {name: _whole(tensors[name], file, begin + offsets[name]) for name in tensors},
        begin + offset,
    )


def _file_name(number: int, count: int) -> str:
    return SINGLE if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def index_of(shards: list[Shard]) -> str:
    """The text of the index that goes with several shards."""
    total = sum(tensor.nbytes for shard in shards for tensor in shard.tensors.values())
    weight_map = {name: shard.file for shard in shards for name in shard.tensors}
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return json.dumps(content, indent=2) + "\n"
