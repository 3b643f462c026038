"""Attention of packed sequences to a beginning that they share and that is packed once.

To its own tokens a sequence attends like any other; this is the block of its queries and the
beginning's keys, merged with the other by the log-sum-exp as blocks of a ring are.

Shapes: T packed tokens, n query heads, g key/value heads, d head size.
"""

from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

import torch

from megarlhf.parallel.device import put
from megarlhf.parallel.flash import FlashBlock
from megarlhf.parallel.scored_attention import ScoredBlock, Scoring


class ContinuedRun(NamedTuple):
    """Neighbours of equal length whose beginnings are of equal length: one batched kernel call.

    Attributes:
        begin: Their tokens are from this one
        end: to the one before this.
        rows: int64 [count, P], the tokens of each one's beginning.
    """

    begin: int
    end: int
    rows: torch.Tensor

    def of(self, tokens: torch.Tensor) -> torch.Tensor:
        """[T, n, d] -> a view of the run's own, [count, n, L, d]."""
        return tokens[self.begin : self.end].unflatten(0, (len(self.rows), -1)).transpose(1, 2)

    def before(self, tokens: torch.Tensor) -> torch.Tensor:
        """[T, g, d] -> the beginnings', [count, g, P, d]."""
        return tokens[self.rows].transpose(1, 2)

    def kernel(self, scale: float, scoring: Scoring) -> FlashBlock | ScoredBlock:
        """What computes the block: every query sees all keys, but for a window."""
        count, before = self.rows.shape
        own = (self.end - self.begin) // count
        if not scoring.matters(before + own):
            return FlashBlock(causal=False, scale=scale)
        return ScoredBlock(scoring, scale, torch.arange(before, before + own), torch.arange(before))


def continued_runs(
    lengths: Sequence[int], starts: Sequence[int], behind: Sequence[int], device: torch.device
) -> tuple[ContinuedRun, ...]:
    """Of a micro-batch: see `MicroBatch` for the arguments."""
    offsets = list(accumulate(lengths, initial=0))
    numbers = [number for number, before in enumerate(behind) if before >= 0]
    runs = []
    for (_, start), same in groupby(numbers, key=lambda number: (lengths[number], starts[number])):
        run = list(same)
        first = torch.tensor([offsets[behind[number]] for number in run])
        rows = first[:, None] + torch.arange(start)
        runs.append(ContinuedRun(offsets[run[0]], offsets[run[-1] + 1], put(rows, device)))
    return tuple(runs)
