"""Tensors as rows of bytes in files: what every checkpoint format comes down to.

A Hugging Face tensor is a table of rows of bytes. Wherever it is stored, it is in runs: boxes of the
table whose rows lie at a constant distance in some file. Safetensors have one run a tensor; in
Megatron's format tensor parallelism and interleaving make several. Reading, writing and hashing are
the same for both, a few rows at a time, through plain reads and writes (mapped memory would turn a
full disk or a truncated file into a killed process).
"""

import contextlib
import errno
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from megarlhf.errors import UserError
from megarlhf.models.weights.operations import Shape

BLOCK_BYTES = 2 * 2**20  # fits a core's cache: read, hashed, checked and written while it is there


@dataclass(frozen=True)
class Run:
    """Rows ``[start, stop)`` by bytes ``[left, right)`` of a tensor's table, stored in one file.

    Row ``r`` is at ``offset + (r - start) * stride``.
    """

    start: int
    stop: int
    left: int
    right: int
    file: str
    offset: int
    stride: int


@dataclass(frozen=True)
class StoredTensor:
    """A Hugging Face tensor and the runs that make it up, ordered by their first row."""

    dtype: torch.dtype
    shape: Shape
    runs: tuple[Run, ...] = ()

    @property
    def rows(self) -> int:
        """The first dimension; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return self.rows * self.row_bytes


class RowFiles:
    """The files of one directory that hold a model's tensors; use as a context manager.

    Args:
        directory: Where the runs' files are.
        tensors: What is where.
        writable: Open the files, which exist already, for writing too.
    """

    def __init__(
        self, directory: Path, tensors: Mapping[str, StoredTensor], *, writable: bool = False
    ) -> None:
        self.directory, self.tensors = directory, tensors
        self._flags = os.O_RDWR if writable else os.O_RDONLY
        self._open: dict[str, int] = {}

    def __enter__(self) -> "RowFiles":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def blocks(self, name: str, limit: int = BLOCK_BYTES) -> Iterator[tuple[int, int, np.ndarray]]:
        """``(start, stop, rows)`` until the tensor is through; the array is used again for the next.

        Args:
            name: The tensor.
            limit: Most bytes of a block, if a row has not more.
        """
        tensor = self.tensors[name]
        most = max(1, min(limit // max(tensor.row_bytes, 1), tensor.rows))
        buffer = np.empty((most, tensor.row_bytes), dtype=np.uint8)
        for start in range(0, tensor.rows, most):
            stop = min(start + most, tensor.rows)
            self.read_rows(name, start, stop, buffer[: stop - start])
            yield start, stop, buffer[: stop - start]

    def read_rows(self, name: str, start: int, stop: int, into: np.ndarray) -> None:
        """Fill ``into``, uint8 [stop - start, row_bytes], with rows of a tensor.

        Raises:
            UserError: The file ends before them.
        """
        for run in self.tensors[name].runs:
            first, last = max(start, run.start), min(stop, run.stop)
            if first >= last:
                continue
            offset = run.offset + (first - run.start) * run.stride
            target = into[first - start : last - start]
            if run.stride == run.right - run.left == into.shape[1]:
                self._read(name, run.file, offset, target)
                continue
            width = run.right - run.left
            for rows, place in _pieces(target, offset, run.stride):
                wide = np.empty((len(rows) - 1) * run.stride + width, dtype=np.uint8)
                self._read(name, run.file, place, wide)
                spread = np.lib.stride_tricks.as_strided(
                    wide, (len(rows), width), (run.stride, 1), writeable=False
                )
                rows[:, run.left : run.right] = spread

    def write_rows(self, name: str, start: int, rows: np.ndarray) -> None:
        """Write ``rows``, uint8 [n, row_bytes], as rows ``start`` and following of a tensor.

        Raises:
            UserError: The disk is full.
        """
        for run in self.tensors[name].runs:
            first, last = max(start, run.start), min(start + len(rows), run.stop)
            if first >= last:
                continue
            offset = run.offset + (first - run.start) * run.stride
            source = rows[first - start : last - start, run.left : run.right]
            if run.stride == source.shape[1]:
                self.write(run.file, offset, np.ascontiguousarray(source))
                continue
            for number, row in enumerate(source):
                self.write(run.file, offset + number * run.stride, row)

    def write(self, file: str, offset: int, data: np.ndarray | bytes) -> None:
        """Write all of ``data`` at a place of a file."""
        view = memoryview(data).cast("B")
        with full_disk_is_an_error(self.directory):
            while view:
                written = os.pwrite(self._descriptor(file), view, offset)
                view, offset = view[written:], offset + written

    def _read(self, name: str, file: str, offset: int, into: np.ndarray) -> None:
        view = memoryview(into.reshape(-1))
        while view:
            count = os.preadv(self._descriptor(file), [view], offset)
            if count == 0:
                raise UserError(
                    f"the file ends within the tensor {name}",
                    where=str(self.directory / file),
                    fix="copy or download it again",
                )
            view, offset = view[count:], offset + count

    def _descriptor(self, file: str) -> int:
        if file not in self._open:
            try:
                self._open[file] = os.open(self.directory / file, self._flags)
            except FileNotFoundError:
                raise UserError(
                    f"the file {file} of the checkpoint is missing",
                    where=str(self.directory),
                    fix="copy or download the checkpoint again",
                ) from None
        return self._open[file]

    def sync(self) -> None:
        """Have what was written to the open files on the disk."""
        with full_disk_is_an_error(self.directory):
            for descriptor in list(self._open.values()):  # a thread may open more
                os.fdatasync(descriptor)


def _pieces(rows: np.ndarray, offset: int, stride: int) -> Iterator[tuple[np.ndarray, int]]:
    """Cut rows that lie ``stride`` apart in a file so that none spans more than a block of it."""
    most = max(1, BLOCK_BYTES // stride)
    for start in range(0, len(rows), most):
        yield rows[start : start + most], offset + start * stride


@contextlib.contextmanager
def full_disk_is_an_error(directory: Path) -> Iterator[None]:
    """Turn the system's refusal to write more into a `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"there is no space left to write to ({error.strerror})",
            where=str(directory),
            fix="free space or choose another disk; what was there before is untouched",
        ) from None
