"""How Hugging Face tensors make up one Megatron parameter, as rectangles.

An operation answers one question: on tensor-parallel rank r of n, which rectangle of which Hugging
Face tensor is which rectangle of the local parameter? The answer, a list of `Piece`, is read one way
to load, the other way to export, and intersected to stream; there is no second definition.

All indices are host integers; nothing here touches a tensor.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

Shape = tuple[int, ...]


@dataclass(frozen=True, order=True)
class Rect:
    """A box of a tensor: ``[start, stop)`` along every dimension."""

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def whole(cls, shape: Shape) -> "Rect":
        """The box that is all of a tensor."""
        return cls(tuple((0, size) for size in shape))

    @property
    def shape(self) -> Shape:
        """Extent along every dimension."""
        return tuple(stop - start for start, stop in self.ranges)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """For indexing a tensor."""
        return tuple(slice(start, stop) for start, stop in self.ranges)

    def along(self, dim: int, start: int, stop: int) -> "Rect":
        """The same box with another range along one dimension."""
        return Rect((*self.ranges[:dim], (start, stop), *self.ranges[dim + 1 :]))


@dataclass(frozen=True)
class Piece:
    """``local[piece.local] == hf[piece.source][piece.hf]``."""

    source: int
    hf: Rect
    local: Rect


class Operation:
    """Base: the parameter is a copy of one tensor, the same on every rank (norms)."""

    @property
    def partition_dim(self) -> int | None:
        """Dimension of the parameter that tensor parallelism cuts; None where it is replicated."""
        return None

    def local_shape(self, shapes: Sequence[Shape], tp: int) -> Shape:
        """Shape of the parameter on each of ``tp`` ranks."""
        return shapes[0]

    def pieces(self, shapes: Sequence[Shape], tp_rank: int, tp: int) -> list[Piece]:
        """What this rank's parameter consists of.

        Args:
            shapes: Shapes of the Hugging Face tensors, in the entry's order.
            tp_rank: This rank.
            tp: Tensor-parallel size; it must divide what is cut.
        """
        return [Piece(0, Rect.whole(shapes[0]), Rect.whole(shapes[0]))]


class Replicated(Operation):
    """One tensor, the same on every rank."""


@dataclass(frozen=True)
class Cut(Operation):
    """One tensor, cut along ``dim``: 0 for a column-parallel linear, 1 for a row-parallel one."""

    dim: int

    @property
    def partition_dim(self) -> int:
        return self.dim

    def local_shape(self, shapes: Sequence[Shape], tp: int) -> Shape:
        return Rect.whole(shapes[0]).along(self.dim, 0, shapes[0][self.dim] // tp).shape

    def pieces(self, shapes: Sequence[Shape], tp_rank: int, tp: int) -> list[Piece]:
        size = shapes[0][self.dim] // tp
        whole = Rect.whole(shapes[0])
        return [
            Piece(
                0,
                whole.along(self.dim, tp_rank * size, (tp_rank + 1) * size),
                whole.along(self.dim, 0, size),
            )
        ]


class Vocabulary(Operation):
    """Embedding or output rows, padded with zeros to a multiple of the tensor-parallel size."""

    partition_dim = 0

    def local_shape(self, shapes: Sequence[Shape], tp: int) -> Shape:
        return (-(-shapes[0][0] // tp), *shapes[0][1:])

    def pieces(self, shapes: Sequence[Shape], tp_rank: int, tp: int) -> list[Piece]:
        rows = self.local_shape(shapes, tp)[0]
        start = min(tp_rank * rows, shapes[0][0])
        stop = min(start + rows, shapes[0][0])
        if start == stop:
            return []  # this rank holds only padding
        whole = Rect.whole(shapes[0])
        return [Piece(0, whole.along(0, start, stop), whole.along(0, 0, stop - start))]


class Stacked(Operation):
    """Several tensors cut by rows, this rank's parts one under the other (gate and up)."""

    partition_dim = 0

    def local_shape(self, shapes: Sequence[Shape], tp: int) -> Shape:
        return (sum(shape[0] for shape in shapes) // tp, *shapes[0][1:])

    def pieces(self, shapes: Sequence[Shape], tp_rank: int, tp: int) -> list[Piece]:
        pieces, offset = [], 0
        for source, shape in enumerate(shapes):
            size = shape[0] // tp
            whole = Rect.whole(shape)
            pieces.append(
                Piece(
                    source,
                    whole.along(0, tp_rank * size, (tp_rank + 1) * size),
                    whole.along(0, offset, offset + size),
                )
            )
            offset += size
        return pieces


@dataclass(frozen=True)
class QueryKeyValue(Operation):
    """q, k, v (weight or bias) interleaved by query group, the rows cut over ranks.

    Megatron's rows are, for each group, its query heads, its key head and its value head. ``groups``
    is the number of key/value heads. Where there are fewer than ranks, a rank has part of a group.
    """

    groups: int
    partition_dim: ClassVar[int] = 0

    def local_shape(self, shapes: Sequence[Shape], tp: int) -> Shape:
        return (sum(shape[0] for shape in shapes) // tp, *shapes[0][1:])

    def pieces(self, shapes: Sequence[Shape], tp_rank: int, tp: int) -> list[Piece]:
        size = self.local_shape(shapes, tp)[0]
        begin, end = tp_rank * size, (tp_rank + 1) * size
        pieces, offset = [], 0
        for group in range(self.groups):
            for source, shape in enumerate(shapes):
                rows = shape[0] // self.groups
                start, stop = max(begin, offset), min(end, offset + rows)
                if start < stop:
                    whole = Rect.whole(shape)
                    first = group * rows - offset  # of the tensor's rows to these rows
                    pieces.append(
                        Piece(
                            source,
                            whole.along(0, start + first, stop + first),
                            whole.along(0, start - begin, stop - begin),
                        )
                    )
                offset += rows
        return pieces
