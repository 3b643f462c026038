"""Attention of packed sequences to a beginning that they share and that is packed once.

To its own tokens a sequence attends like any other; this is the block of the queries of all that goes on
from a beginning and the beginning's keys, merged with the other by the log-sum-exp as blocks of a
ring are.

Shapes: T packed tokens, n query heads, g key/value heads, d head size.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from megarlhf.parallel.device import put
from megarlhf.parallel.flash import FlashBlock
from megarlhf.parallel.runs import as_tokens
from megarlhf.parallel.scored_attention import ScoredBlock, Scoring

FULL = 0.5  # a row of queries is filled up to another's length if it has this share of it


class ContinuedRun(NamedTuple):
    """Beginnings of equal length, each with all that goes on from it: one batched kernel call.

    Rows of fewer queries than the longest are filled up with some of their own, whose results do
    not count.

    Attributes:
        keys: int64 [count, P], the tokens of each beginning.
        queries: int64 [count, Q], the tokens that go on from each.
        places: int64 [count, 1, 1, Q] on the host: each query's place in its sequence.
        filling: bool [count, 1, Q]; None where no row is filled up.
        tokens: int64 [N], the tokens that go on from any of them, each once,
        at: and where they are among the count * Q.
    """

    keys: torch.Tensor
    queries: torch.Tensor
    places: torch.Tensor
    filling: torch.Tensor | None
    tokens: torch.Tensor
    at: torch.Tensor

    def merge(
        self,
        out: torch.Tensor,
        lse: torch.Tensor,
        heads: Sequence[torch.Tensor],
        scale: float,
        scoring: Scoring,
    ) -> None:
        """Add the block to what the queries have found in their own sequences, in place.

        Args:
            out: [T, n, d], fp32 or wider.
            lse: [T, n].
            heads: query [T, n, d], key and value [T, g, d].
            scale: Of the scores.
            scoring: A soft cap or a window of them.
        """
        found = self._kernel(scale, scoring).forward(*self._heads(heads))
        more, more_lse = (as_tokens(part).index_select(0, self.at) for part in found)
        before = lse.index_select(0, self.tokens)
        total = torch.logaddexp(before, more_lse)
        merged = out.index_select(0, self.tokens).mul_((before - total).exp_()[..., None])
        merged.addcmul_(more.to(out.dtype), (more_lse - total).exp_()[..., None])
        out.index_copy_(0, self.tokens, merged)
        lse.index_copy_(0, self.tokens, total)

    def add_gradients(
        self,
        grads: Sequence[torch.Tensor],
        grad_out: torch.Tensor,
        heads: Sequence[torch.Tensor],
        out: torch.Tensor,
        lse: torch.Tensor,
        scale: float,
        scoring: Scoring,
    ) -> None:
        """Add the block's gradients to those of query, key and value, in place.

        Args:
            grads: Of query, key and value, fp32 or wider.
            grad_out: [T, n, d], of the merged output.
            heads: query, key, value.
            out: The merged output,
            lse: and log-sum-exp.
            scale: See `merge`.
            scoring: See `merge`.
        """
        rows_of_lse = _rows(lse, self.queries)
        if self.filling is not None:  # exp(score - inf) is no weight at all
            rows_of_lse = rows_of_lse.masked_fill(self.filling, float("inf"))
        found = self._kernel(scale, scoring).backward(
            _rows(grad_out, self.queries),
            *self._heads(heads),
            _rows(out, self.queries),
            rows_of_lse.contiguous(),
        )
        of_query = as_tokens(found[0]).index_select(0, self.at)
        _add(grads[0], self.tokens, of_query)
        for whole, part in zip(grads[1:], found[1:], strict=True):
            _add(whole, self.keys.flatten(), as_tokens(part))

    def _heads(self, heads: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Queries [count, n, Q, d], keys and values [count, g, P, d]."""
        for tensor, rows in zip(heads, (self.queries, self.keys, self.keys), strict=True):
            yield _rows(tensor, rows)

    def _kernel(self, scale: float, scoring: Scoring) -> FlashBlock | ScoredBlock:
        """What computes the block: every query sees all keys, but for a window."""
        if not scoring.matters(int(self.places.max()) + 1):
            return FlashBlock(causal=False, scale=scale)
        return ScoredBlock(scoring, scale, self.places, torch.arange(self.keys.shape[1]))


class _Beginning(NamedTuple):
    """Tokens of one, all that go on from it, and their places in their sequences; on the host."""

    keys: torch.Tensor
    queries: torch.Tensor
    places: torch.Tensor


def continued_runs(
    lengths: Sequence[int], starts: Sequence[int], behind: Sequence[int], device: torch.device
) -> tuple[ContinuedRun, ...]:
    """Of a micro-batch: see `MicroBatch` for the arguments."""
    offsets = list(accumulate(lengths, initial=0))
    members = defaultdict(list)
    for number, before in enumerate(behind):
        if before >= 0:
            members[before].append(number)
    beginnings = [
        _Beginning(
            torch.arange(offsets[before], offsets[before] + starts[own[0]]),  # without padding
            torch.cat([torch.arange(offsets[n], offsets[n + 1]) for n in own]),
            torch.cat([torch.arange(starts[n], starts[n] + lengths[n]) for n in own]),
        )
        for before, own in members.items()
    ]
    beginnings.sort(key=lambda one: (len(one.keys), -len(one.queries)))
    runs: list[list[_Beginning]] = []
    for one in beginnings:
        longest = runs[-1][0] if runs else None
        if (
            longest is not None
            and len(longest.keys) == len(one.keys)
            and len(one.queries) >= FULL * len(longest.queries)
        ):
            runs[-1].append(one)
        else:
            runs.append([one])
    return tuple(_run(run, device) for run in runs)


def _run(beginnings: Sequence[_Beginning], device: torch.device) -> ContinuedRun:
    keys, queries, places = zip(*beginnings, strict=True)
    own = torch.tensor([len(row) for row in queries])
    is_filling = torch.arange(int(own.max())) >= own[:, None]

    def filled(rows: Sequence[torch.Tensor]) -> torch.Tensor:
        first = torch.stack([row[0] for row in rows])[:, None]
        padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        return torch.where(is_filling, first, padded)

    return ContinuedRun(
        keys=put(torch.stack(keys), device),
        queries=put(filled(queries), device),
        places=filled(places)[:, None, None],
        filling=put(is_filling[:, None], device) if is_filling.any() else None,
        tokens=put(torch.cat(queries), device),
        at=put((~is_filling).flatten().nonzero().flatten(), device),
    )


def _rows(tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[T, n, ...] and [count, L] -> [count, n, L, ...]; on a CPU this is faster than an index."""
    return tensor.index_select(0, rows.flatten()).unflatten(0, rows.shape).transpose(1, 2)


def _add(whole: torch.Tensor, tokens: torch.Tensor, part: torch.Tensor) -> None:
    """To rows that are each named once."""
    whole.index_copy_(0, tokens, whole.index_select(0, tokens).add_(part))
