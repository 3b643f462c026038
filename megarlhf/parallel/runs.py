"""Neighbours of equal length among packed sequences: what one batched kernel call takes.

Shapes: T packed tokens, n heads, d head size.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch


class Run(NamedTuple):
    """Neighbouring sequences of equal length: tokens [begin, end), ``count`` sequences."""

    begin: int
    end: int
    count: int

    @property
    def length(self) -> int:
        """Of each sequence."""
        return (self.end - self.begin) // self.count

    def of(self, tokens: torch.Tensor) -> torch.Tensor:
        """[T, n, ...] -> a view of the run's own, [count, n, length, ...]."""
        return tokens[self.begin : self.end].unflatten(0, (self.count, -1)).transpose(1, 2)


def runs_of(lengths: Sequence[int]) -> list[Run]:
    """Group neighbours of equal length."""
    runs, begin = [], 0
    for length, same in groupby(lengths):
        count = sum(1 for _ in same)
        runs.append(Run(begin, begin + count * length, count))
        begin = runs[-1].end
    return runs


def as_tokens(heads: torch.Tensor) -> torch.Tensor:
    """[count, n, length, ...] -> [count * length, n, ...]: a view of what flash kernels return."""
    return heads.transpose(1, 2).flatten(0, 1)
