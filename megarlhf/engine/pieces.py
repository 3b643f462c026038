"""Tensors of all sizes in memory that comes in equal parts."""

from collections.abc import Sequence
from dataclasses import dataclass

# Where a piece begins, in its tensor and in its part. Kernels take elements by whole vectors: so cut,
# a tensor is computed with the same instructions, and to the same bits, as whole.
ALIGN = 16


@dataclass(frozen=True)
class Piece:
    """A stretch of a tensor and its place in a part.

    Attributes:
        index: Of the tensor.
        begin: The first element.
        end: Behind the last.
        place: Of the first element in the part.
    """

    index: int
    begin: int
    end: int
    place: int

    @property
    def size(self) -> int:
        """Elements."""
        return self.end - self.begin


def cut(sizes: Sequence[int], most: int) -> list[list[Piece]]:
    """Tensors one behind the other, in parts that are full but for the last.

    Args:
        sizes: Elements of each tensor.
        most: Elements of a part; a multiple of `ALIGN`.
    """
    parts: list[list[Piece]] = []
    used = most
    for index, size in enumerate(sizes):
        begin = 0
        while begin < size:
            if used >= most:
                parts.append([])
                used = 0
            end = min(size, begin + most - used)
            parts[-1].append(Piece(index, begin, end, used))
            used += -(-(end - begin) // ALIGN) * ALIGN
            begin = end
    return parts
