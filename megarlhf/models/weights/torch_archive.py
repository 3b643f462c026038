"""The bytes that `torch.save` puts around a tensor's own: a zip archive with a pickle in it.

To write a tensor a few rows at a time its archive is made here: a head, the tensor's bytes, a tail,
of known lengths. To read one likewise, the place of its bytes is found. The format: a stored (not
compressed) record ``data/0`` and a pickle ``data.pkl`` that says what is made of it; see
https://pytorch.org/docs/stable/notes/serialization.html.

The checksum of ``data/0`` is left zero, as `torch.serialization.set_crc32_options` may: torch does not
look at it, and a checkpoint has a fingerprint.
"""

import functools
import io
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from typing import Any, BinaryIO

import torch
from torch._utils import _rebuild_tensor_v2

from megarlhf.models.weights.operations import Shape

_ALIGNMENT = 64  # of data/0 from the archive's start, as torch has it
_MAX_32 = 0xFFFFFFFF


@functools.lru_cache(maxsize=4096)
def head_and_tail(shape: Shape, dtype: torch.dtype) -> tuple[bytes, bytes]:
    """What stands before and behind the bytes of a contiguous tensor."""
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    head, directory = b"", b""
    records = (
        ("data.pkl", _tensor_pickle(shape, dtype)),
        ("byteorder", b"little"),
        ("version", b"3\n"),
        ("data/0", None),
    )
    for name, content in records:
        size = nbytes if content is None else len(content)
        checksum = 0 if content is None else zlib.crc32(content)
        path, place = f"archive/{name}".encode(), len(head)
        large = struct.pack("<HHQQ", 1, 16, size, size)  # sizes of more than 32 bits are here
        sizes = (_MAX_32, _MAX_32)
        extra = large
        if content is None:
            start = place + 30 + len(path) + len(large) + 4
            extra += struct.pack("<2sH", b"FB", -start % _ALIGNMENT) + b"Z" * (-start % _ALIGNMENT)
        common = struct.pack("<HHHHHLLLH", 45, 0, 0, 0, 0x21, checksum, *sizes, len(path))
        head += b"PK\3\4" + common + struct.pack("<H", len(extra)) + path + extra + (content or b"")
        directory += (
            b"PK\1\2"
            + struct.pack("<H", 45)
            + common
            + struct.pack("<HHHHLL", len(large), 0, 0, 0, 0, place)
            + path
            + large
        )
    return head, directory + _end(len(records), len(directory), len(head) + nbytes)


def _end(count: int, size: int, place: int) -> bytes:
    """The zip's end: the 64-bit record, its locator and the old record, which points to it."""
    end_64 = b"PK\6\6" + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, count, count, size, place)
    locator = b"PK\6\7" + struct.pack("<LQL", 0, place + size, 1)
    old = b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, count, count, size, _MAX_32, 0)
    return end_64 + locator + old


class _Storage:
    """Stands in the pickle for the tensor's storage."""

    def __init__(self, dtype: torch.dtype, numel: int) -> None:
        tensor_type = torch.empty(0, dtype=dtype).type()  # torch.BFloat16Tensor
        self.key = getattr(torch, tensor_type.split(".")[-1].replace("Tensor", "Storage"))
        self.numel = numel


class _Tensor:
    """Pickles as torch's tensors do."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        self.shape, self.storage = shape, _Storage(dtype, torch.Size(shape).numel())

    def __reduce__(self) -> tuple[Any, ...]:
        stride = torch.empty(self.shape, device="meta").stride()
        return _rebuild_tensor_v2, (self.storage, 0, self.shape, stride, False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, thing: object) -> tuple[Any, ...] | None:
        if isinstance(thing, _Storage):
            return ("storage", thing.key, "0", "cpu", thing.numel)
        return None


@functools.lru_cache(maxsize=4096)
def _tensor_pickle(shape: Shape, dtype: torch.dtype) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(_Tensor(shape, dtype))
    return buffer.getvalue()


class _Window(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {0: 0, 1: self._at, 2: self._length}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = self._length - self._at
        self._file.seek(self._start + self._at)
        data = self._file.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data


def find_tensor(
    file: BinaryIO, start: int, length: int, shape: Shape, dtype: torch.dtype
) -> int | None:
    """Where in a file a tensor's bytes begin that `torch.save` wrote there.

    Args:
        file: The file.
        start: Where the archive begins.
        length: Its length.
        shape: The tensor's.
        dtype: The tensor's.

    Returns:
        The place; None where the archive is damaged or no contiguous tensor of that kind.
    """
    head, tail = head_and_tail(shape, dtype)
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    file.seek(start)
    if length == len(head) + nbytes + len(tail) and file.read(len(head)) == head:
        return start + len(head)  # one of ours
    try:
        archive = zipfile.ZipFile(_Window(file, start, length))
        root = archive.namelist()[0].split("/")[0]
        if archive.read(f"{root}/data.pkl") != _tensor_pickle(shape, dtype):
            return None
        record = archive.getinfo(f"{root}/data/0")
        file.seek(start + record.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", file.read(4))
    except Exception:  # damaged bytes make zipfile raise anything
        return None
    if record.compress_type != zipfile.ZIP_STORED or record.file_size != nbytes:
        return None
    place = record.header_offset + 30 + name_length + extra_length
    return start + place if 0 <= place <= length - nbytes else None
