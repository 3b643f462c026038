"""Where the rows of each Hugging Face tensor lie in a Megatron checkpoint."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from megarlhf.models.weights.megatron_names import GlobalParameter
from megarlhf.models.weights.operations import Piece, Rect, Shape
from megarlhf.models.weights.row_files import Run, StoredTensor


@dataclass(frozen=True)
class Chunk:
    """A box of a global tensor, stored contiguously.

    Attributes:
        box: Axes in front included.
        dtype: Of its elements.
        file: That holds it.
        offset: Of its first byte.
    """

    box: Rect
    dtype: torch.dtype
    file: str
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self.box.numel * self.dtype.itemsize


@dataclass(frozen=True)
class _Table:
    """A box as rows by elements."""

    top: int
    bottom: int
    left: int
    right: int

    @classmethod
    def of(cls, box: Rect) -> "_Table":
        (top, bottom), *rest = box.ranges
        if not rest:
            return cls(top, bottom, 0, 1)
        (left, right), *whole = rest
        inner = math.prod(stop - start for start, stop in whole)  # never cut by any operation
        return cls(top, bottom, left * inner, right * inner)


@dataclass(frozen=True)
class _Part:
    """What a chunk holds of one parameter."""

    table: _Table
    dtype: torch.dtype
    file: str
    offset: int


def stored_tensors(
    parameters: Sequence[GlobalParameter], chunks: Mapping[str, Sequence[Chunk]]
) -> dict[str, StoredTensor]:
    """Every Hugging Face tensor and its runs.

    Args:
        parameters: The model's.
        chunks: What is stored of each global tensor, by key.

    Returns:
        By name; what is not stored as a whole is left out.
    """
    axes = {parameter.key: len(parameter.axes) for parameter in parameters}
    parts: dict[tuple[str, tuple[int, ...]], list[_Part]] = defaultdict(list)
    for key, in_front in axes.items():
        for chunk in chunks.get(key, ()):
            for index, part in _split(chunk, in_front):
                parts[key, index].append(part)
    found: dict[str, StoredTensor] = {}
    for parameter in parameters:
        here = parts[parameter.key, parameter.index]
        for source, (name, shape) in enumerate(
            zip(parameter.sources, parameter.shapes, strict=True)
        ):
            pieces = [piece for piece in parameter.pieces if piece.source == source]
            tensor = _stored(shape, pieces, here)
            if tensor is not None:
                found[name] = tensor
    return found


def _split(chunk: Chunk, in_front: int) -> Iterator[tuple[tuple[int, ...], _Part]]:
    """A chunk by positions along the axes in front; Megatron's linears save one position each."""
    table = _Table.of(Rect(chunk.box.ranges[in_front:]))
    size = (table.bottom - table.top) * (table.right - table.left) * chunk.dtype.itemsize
    positions = itertools.product(*(range(*bounds) for bounds in chunk.box.ranges[:in_front]))
    for number, index in enumerate(positions):
        yield index, _Part(table, chunk.dtype, chunk.file, chunk.offset + number * size)


def _stored(shape: Shape, pieces: Sequence[Piece], parts: Sequence[_Part]) -> StoredTensor | None:
    dtypes = {part.dtype for part in parts}
    if len(dtypes) != 1:
        return None
    runs = [run for piece in pieces for part in parts if (run := _run(piece, part)) is not None]
    runs.sort(key=lambda run: (run.start, run.left))
    tensor = StoredTensor(dtypes.pop(), shape, tuple(runs))
    covered = sum((run.stop - run.start) * (run.right - run.left) for run in runs)
    return tensor if covered == tensor.nbytes else None


def _run(piece: Piece, part: _Part) -> Run | None:
    """What of a piece a part has."""
    hf, local, table = _Table.of(piece.hf), _Table.of(piece.local), part.table
    top, bottom = max(local.top, table.top), min(local.bottom, table.bottom)
    left, right = max(local.left, table.left), min(local.right, table.right)
    if top >= bottom or left >= right:
        return None
    size, width = part.dtype.itemsize, table.right - table.left
    return Run(
        start=hf.top + top - local.top,
        stop=hf.top + bottom - local.top,
        left=(hf.left + left - local.left) * size,
        right=(hf.left + right - local.left) * size,
        file=part.file,
        offset=part.offset + ((top - table.top) * width + left - table.left) * size,
        stride=width * size,
    )
