"""Causal attention over packed sequences that are cut over a context-parallel ring.

Ring attention (Liu et al. 2023, arXiv:2310.01889) with the zig-zag cut of `context`: keys and values
travel round the ring; every rank merges the blocks it sees by their log-sum-exp (the online softmax of
Milakov and Gimelshein 2018, arXiv:1805.02867). In the backward pass dK and dV travel with their block.

Shapes: T packed tokens of this rank, n query heads, g key/value heads, d head size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from megarlhf.parallel.context import zigzag_indices
from megarlhf.parallel.flash import FlashBlock
from megarlhf.parallel.ring import Ring
from megarlhf.parallel.runs import Run, runs_of
from megarlhf.parallel.scored_attention import ScoredBlock, Scoring


def ring_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    *,
    scale: float,
    group: dist.ProcessGroup,
    scoring: Scoring,
) -> torch.Tensor:
    """See `packed_attention`; ``lengths`` are this rank's of every sequence, which are even."""
    return _RingAttention.apply(query, key, value, tuple(lengths), scale, group, scoring)


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, lengths, scale, group, scoring):  # noqa: ANN001, ANN205
        runs = runs_of(lengths)
        ring = Ring(group)
        wide = torch.promote_types(query.dtype, torch.float32)
        lse = torch.full(query.shape[:2], float("-inf"), dtype=wide, device=query.device)
        out = torch.zeros(query.shape, dtype=wide, device=query.device)
        pair = torch.stack((key, value))
        for source in ring.sources():
            incoming = ring.shift(pair)
            block = _Block.of(ring.rank, source)
            for run in runs:
                kernel = _kernel(block, run, ring, source, scale, scoring)
                block_out, block_lse = kernel.forward(*block.cut(run, query, *pair))
                rows = block.query_view(run, out), block.query_view(run, lse[..., None])[..., 0]
                _merge(*rows, block_out, block_lse)
            pair = incoming.wait()
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.runs, ctx.scale, ctx.group, ctx.scoring = runs, scale, group, scoring
        return out

    @staticmethod
    def backward(ctx, grad_out):  # noqa: ANN001, ANN205
        query, key, value, out, lse = ctx.saved_tensors
        ring = Ring(ctx.group)
        grad_out = grad_out.contiguous()
        grad_query = torch.zeros(query.shape, dtype=lse.dtype, device=query.device)
        pair = torch.stack((key, value))
        grad_pair = torch.zeros(pair.shape, dtype=lse.dtype, device=query.device)
        for source in ring.sources():
            incoming = ring.shift(pair)
            block = _Block.of(ring.rank, source)
            for run in ctx.runs:
                kernel = _kernel(block, run, ring, source, ctx.scale, ctx.scoring)
                dq, dk, dv = kernel.backward(
                    block.query_view(run, grad_out).contiguous(),
                    *block.cut(run, query, *pair),
                    block.query_view(run, out).contiguous(),
                    block.query_view(run, lse[..., None])[..., 0].contiguous(),
                )
                block.query_view(run, grad_query).add_(dq)
                block.key_view(run, grad_pair[0]).add_(dk)
                block.key_view(run, grad_pair[1]).add_(dv)
            pair = incoming.wait()
            # After the last block this shift brings every gradient home.
            grad_pair = ring.shift(grad_pair, always=True).wait()
        return (
            grad_query.to(query.dtype),
            grad_pair[0].to(key.dtype),
            grad_pair[1].to(value.dtype),
            *(None,) * 4,
        )


def _kernel(
    block: "_Block", run: Run, ring: Ring, source: int, scale: float, scoring: Scoring
) -> FlashBlock | ScoredBlock:
    """What computes a block of a run whose keys come from the rank ``source``."""
    local = run.length
    if not scoring.matters(local * ring.size):
        return FlashBlock(block.causal, scale)

    def places_of(rank: int, halves: slice) -> torch.Tensor:
        return zigzag_indices([local * ring.size], rank, ring.size).view(2, -1)[halves].flatten()

    queries, keys = places_of(ring.rank, block.queries), places_of(source, block.keys)
    return ScoredBlock(scoring, scale, queries, keys)


class _Block(NamedTuple):
    """Which part of the local queries sees which part of a rank's keys.

    With zig-zag, a rank's sequence is an early chunk and a late one. Its own keys: plainly causal. Keys
    of a lower rank: their early chunk is before both of ours, their late one after both. Keys of a
    higher rank: both chunks are before our late one and after our early one.
    """

    queries: slice
    keys: slice
    causal: bool

    @classmethod
    def of(cls, rank: int, source: int) -> "_Block":
        if source == rank:
            return cls(slice(0, 2), slice(0, 2), causal=True)
        if source < rank:
            return cls(slice(0, 2), slice(0, 1), causal=False)
        return cls(slice(1, 2), slice(0, 2), causal=False)

    def cut(
        self, run: Run, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The run's queries [B, n, Lq, d], keys and values [B, g, Lk, d] of this block."""
        return self.query_view(run, query), self.key_view(run, key), self.key_view(run, value)

    def query_view(self, run: Run, tokens: torch.Tensor) -> torch.Tensor:
        """[T, n, d] -> a view of the run's visible queries, [B, n, Lq, d]."""
        return self._view(run, tokens, self.queries)

    def key_view(self, run: Run, tokens: torch.Tensor) -> torch.Tensor:
        """[T, g, d] -> a view of the run's visible keys, [B, g, Lk, d]."""
        return self._view(run, tokens, self.keys)

    @staticmethod
    def _view(run: Run, tokens: torch.Tensor, halves: slice) -> torch.Tensor:
        sequences = tokens[run.begin : run.end].unflatten(0, (run.count, -1))
        if halves != slice(0, 2):
            half = sequences.shape[1] // 2
            sequences = sequences[:, halves.start * half : halves.stop * half]
        return sequences.transpose(1, 2)


def _merge(
    out: torch.Tensor, lse: torch.Tensor, block_out: torch.Tensor, block_lse: torch.Tensor
) -> None:
    """Add a block to a running softmax-weighted mean, in place."""
    total = torch.logaddexp(lse, block_lse)
    out.mul_((lse - total).exp()[..., None]).add_(block_out * (block_lse - total).exp()[..., None])
    lse.copy_(total)
