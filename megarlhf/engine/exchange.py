"""Rows of sequences from the ranks of one layout to those of another: who sends what to whom.

A rank holds, of each sequence of its data-parallel share, some tokens (all, or its zig-zag chunks) and a
range of columns. Every rank knows both layouts and finds the same plan.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megarlhf.data.packing import padded_length
from megarlhf.parallel.context import zigzag_indices
from megarlhf.parallel.topology import Topology


@dataclass(frozen=True)
class Side:
    """One of the two layouts.

    Attributes:
        topology: The layout.
        shares: Of each data-parallel rank, the sequences that it has, by index.
        pad_to_multiple: Sequences are padded to a multiple of this.
        columns: Of each tensor-parallel rank, the range of columns: (begin, end).
    """

    topology: Topology
    shares: Sequence[frozenset[int]]
    pad_to_multiple: int
    columns: Sequence[tuple[int, int]]

    def holders(self, index: int) -> list[int]:
        """Ranks of the last pipeline stage that hold a part of a sequence."""
        found = []
        for rank in range(self.topology.world):
            place = self.topology.coordinates(rank)
            begin, end = self.columns[place.tp]
            on_last_stage = place.pp == self.topology.pp - 1
            if on_last_stage and end > begin and index in self.shares[place.dp]:
                found.append(rank)
        return found

    def positions(self, rank: int, length: int) -> list[int]:
        """Which tokens of a sequence of ``length`` tokens a rank holds, in its order, with padding."""
        padded = padded_length(length, self.pad_to_multiple)
        place = self.topology.coordinates(rank)
        if self.topology.cp == 1:
            return list(range(padded))
        return zigzag_indices([padded], place.cp, self.topology.cp).tolist()

    def columns_of(self, rank: int) -> tuple[int, int]:
        """The columns that a rank holds."""
        return self.columns[self.topology.coordinates(rank).tp]


@dataclass(frozen=True)
class Rectangle:
    """What one rank sends another of one sequence.

    Attributes:
        index: The sequence.
        sender: Sends it.
        receiver: Gets it.
        tokens: Positions in the sequence.
        columns: (begin, end).
    """

    index: int
    sender: int
    receiver: int
    tokens: tuple[int, ...]
    columns: tuple[int, int]

    @property
    def size(self) -> int:
        """Numbers in it."""
        return len(self.tokens) * (self.columns[1] - self.columns[0])


def plan(source: Side, target: Side, lengths: Sequence[int]) -> list[Rectangle]:
    """Every rectangle, in the order in which senders and receivers lay them end to end.

    Args:
        source: Who has the rows. Where several ranks hold the same, the first sends.
        target: Who needs them.
        lengths: Tokens of each sequence, without padding: padding is not sent.
    """
    rectangles = []
    for index, length in enumerate(lengths):
        receivers = target.holders(index)
        for sender in source.holders(index):
            held = source.positions(sender, length)
            begin, end = source.columns_of(sender)
            for receiver in receivers:
                first, last = target.columns_of(receiver)
                columns = (max(begin, first), min(end, last))
                wanted = set(target.positions(receiver, length))
                tokens = tuple(sorted(t for t in held if t < length and t in wanted))
                if tokens and columns[0] < columns[1]:
                    rectangles.append(Rectangle(index, sender, receiver, tokens, columns))
    return rectangles


def exchange(
    rows: Mapping[int, torch.Tensor],
    source: Side,
    target: Side,
    lengths: Sequence[int],
    *,
    rank: int,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[int, torch.Tensor]:
    """Send rows to where they are needed. Collective over all ranks.

    Args:
        rows: This rank's [tokens with padding, columns] of each sequence that it holds in ``source``.
        source: Who has them.
        target: Who needs them.
        lengths: Tokens of each sequence.
        rank: This rank.
        dtype: Of the rows.
        device: Where the ranks communicate.

    Returns:
        This rank's rows of each sequence that it holds in ``target``; 0 at padding.
    """
    rectangles = plan(source, target, lengths)
    sent, got = [[0] * source.topology.world for _ in range(2)]
    outgoing = []
    for rectangle in sorted(rectangles, key=lambda rectangle: rectangle.receiver):
        if rectangle.sender == rank:
            sent[rectangle.receiver] += rectangle.size
            outgoing.append(_cut(rows[rectangle.index], source, rectangle, lengths, rank))
    for rectangle in rectangles:
        if rectangle.receiver == rank:
            got[rectangle.sender] += rectangle.size
    buffer = torch.cat([torch.zeros(0, dtype=dtype, device=device), *outgoing])
    received = torch.empty(sum(got), dtype=dtype, device=device)
    dist.all_to_all_single(received, buffer, got, sent)
    return _assembled(received, rectangles, target, lengths, rank)


def _cut(
    held: torch.Tensor, source: Side, rectangle: Rectangle, lengths: Sequence[int], rank: int
) -> torch.Tensor:
    rows = _rows(source.positions(rank, lengths[rectangle.index]), rectangle)
    first = source.columns_of(rank)[0]
    begin, end = rectangle.columns
    return held[rows, begin - first : end - first].flatten()


def _assembled(
    received: torch.Tensor,
    rectangles: Sequence[Rectangle],
    target: Side,
    lengths: Sequence[int],
    rank: int,
) -> dict[int, torch.Tensor]:
    mine = [rectangle for rectangle in rectangles if rectangle.receiver == rank]
    first, last = target.columns_of(rank)
    found: dict[int, torch.Tensor] = {}
    begin = 0
    for rectangle in sorted(mine, key=lambda rectangle: rectangle.sender):
        places = target.positions(rank, lengths[rectangle.index])
        if rectangle.index not in found:
            found[rectangle.index] = received.new_zeros(len(places), last - first)
        block = received[begin : begin + rectangle.size].view(len(rectangle.tokens), -1)
        begin += rectangle.size
        rows = _rows(places, rectangle)
        left, right = rectangle.columns
        found[rectangle.index][rows, left - first : right - first] = block
    return found


def _rows(places: Sequence[int], rectangle: Rectangle) -> list[int]:
    """Where a rank that holds the tokens ``places`` has those of a rectangle."""
    row_of = {token: row for row, token in enumerate(places)}
    return [row_of[token] for token in rectangle.tokens]
