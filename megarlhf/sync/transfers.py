"""How a message is cut into transfers: both ends cut alike, and each avoids copies where it can.

Where the values of a transfer lie in one piece they are sent from there, or received to there;
otherwise they go through a small buffer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megarlhf.sync.plan import Move

ALONE = 1 / 8  # of a transfer: a move of so many elements travels without others


@dataclass(frozen=True, slots=True)
class Rows:
    """``[first, last)`` of a move's rows: along its first dimension that is longer than 1.

    Attributes:
        numel: Elements of all of them.
    """

    move: Move
    first: int
    last: int
    numel: int

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """Those rows of the move's values, or of the place where they go."""
        while values.ndim > 1 and values.shape[0] == 1:
            values = values[0]
        return values[self.first : self.last]


Transfer = list[Rows]


def transfers_of(moves: Sequence[Move], most: int) -> list[Transfer]:
    """A message as transfers of at most ``most`` elements (or one row), in the order of sending."""
    found: list[Transfer] = []
    small: Transfer = []
    for move in moves:
        rows, size = _rows_of(move)
        if rows * size >= ALONE * most:
            step = max(1, most // size)
            for first in range(0, rows, step):
                last = min(first + step, rows)
                found.append([Rows(move, first, last, (last - first) * size)])
            continue
        if numel(small) + rows * size > most:
            found.append(small)
            small = []
        small.append(Rows(move, 0, rows, rows * size))
    return [*found, small] if small else found


def _rows_of(move: Move) -> tuple[int, int]:
    """How many rows, and elements of one."""
    shape = move.source.shape
    rows = next((size for size in shape[:-1] if size > 1), shape[-1])
    return rows, move.source.numel // rows


def numel(transfer: Transfer) -> int:
    """Elements."""
    return sum(rows.numel for rows in transfer)


def in_one_piece(
    parts: Sequence[torch.Tensor], dtype: torch.dtype, device: torch.device
) -> torch.Tensor | None:
    """The memory [n] of a transfer's parts, if it is one piece of that dtype on such a device."""
    (first, *others) = parts
    is_as_sent = first.dtype == dtype and first.device.type == device.type
    if others or not is_as_sent or not first.is_contiguous():
        return None
    return first.view(-1)


def buffer(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory [n] of a link's device; on the host, where there is a GPU, that it copies by itself."""
    pinned = device.type == "cpu" and torch.cuda.is_available()
    return torch.empty(size, dtype=dtype, device=device, pin_memory=pinned)


def split(message: torch.Tensor, transfer: Transfer) -> Sequence[torch.Tensor]:
    """The parts [n] of a message [sum of n]."""
    return message.split([rows.numel for rows in transfer])
