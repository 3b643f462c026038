"""How the two matrices of adapters make up Megatron's parameters, as rectangles.

A Hugging Face module has matrices of its own, A [r, in] and B [out, r]; a Megatron linear that fuses
several modules has one parameter A and one B for all of them. See `models/weights/operations.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megarlhf.models.weights.operations import Operation, Piece, Rect, Shape


class Below(Operation):
    """Several tensors one under the other, the same on every rank (A of a column-parallel linear)."""

    def local_shape(self, shapes: Sequence[Shape], tp: int) -> Shape:
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def pieces(self, shapes: Sequence[Shape], tp_rank: int, tp: int) -> list[Piece]:
        pieces, offset = [], 0
        for source, shape in enumerate(shapes):
            whole = Rect.whole(shape)
            pieces.append(Piece(source, whole, whole.along(0, offset, offset + shape[0])))
            offset += shape[0]
        return pieces


@dataclass(frozen=True)
class SomeRows(Operation):
    """The rows that an operation makes of all tensors, of which only some exist (B of those with an
    adapter). The others' rows stay zero.

    Attributes:
        operation: Of the linear's own weight: it cuts rows.
        shapes: Of what it would be made of.
        sources: Which of that there is.
    """

    operation: Operation
    shapes: tuple[Shape, ...]
    sources: tuple[int, ...]

    @property
    def partition_dim(self) -> int | None:
        return self.operation.partition_dim

    def local_shape(self, shapes: Sequence[Shape], tp: int) -> Shape:
        return self.operation.local_shape(self.shapes, tp)

    def pieces(self, shapes: Sequence[Shape], tp_rank: int, tp: int) -> list[Piece]:
        return [
            Piece(self.sources.index(piece.source), piece.hf, piece.local)
            for piece in self.operation.pieces(self.shapes, tp_rank, tp)
            if piece.source in self.sources
        ]
