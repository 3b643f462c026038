"""Causal attention over packed sequences; on one rank here, over a ring in `ring_attention`.

Shapes: T packed tokens of this rank, n query heads, g key/value heads, d head size.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from megarlhf.parallel.continued import ContinuedRun
from megarlhf.parallel.flash import FlashBlock
from megarlhf.parallel.ring_attention import ring_attention
from megarlhf.parallel.runs import Run, as_tokens, runs_of
from megarlhf.parallel.scored_attention import ScoredBlock, Scoring


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    *,
    scale: float,
    group: dist.ProcessGroup | None = None,
    scoring: Scoring | None = None,
    continued: tuple[ContinuedRun, ...] = (),
) -> torch.Tensor:
    """Causal attention inside each packed sequence, and to the beginning that it goes on from.

    Args:
        query: [T, n, d].
        key: [T, g, d].
        value: [T, g, d].
        lengths: This rank's length of each sequence, host integers; even under context parallelism.
        scale: Of the scores.
        group: Context-parallel group; None, or of size 1, on one rank.
        scoring: A soft cap or a window of the scores.
        continued: Sequences that go on from a shared beginning; on one rank only.

    Returns:
        [T, n, d].
    """
    scoring = scoring or Scoring()
    if group is not None and group.size() > 1:
        return ring_attention(query, key, value, lengths, scale=scale, group=group, scoring=scoring)
    return _LocalAttention.apply(query, key, value, tuple(lengths), scale, scoring, continued)


class _LocalAttention(torch.autograd.Function):
    """One block a sequence, and one for each beginning that is shared."""

    @staticmethod
    def forward(ctx, query, key, value, lengths, scale, scoring, continued):  # noqa: ANN001, ANN205
        heads, runs = (query, key, value), runs_of(lengths)
        found = [
            _kernel(run, scale, scoring).forward(*(run.of(tensor) for tensor in heads))
            for run in runs
        ]
        out, lse = (
            torch.cat([as_tokens(part) for part in of_all]) for of_all in zip(*found, strict=True)
        )
        if continued:
            wide = out.to(lse.dtype)
            for part in continued:
                part.merge(wide, lse, heads, scale, scoring)
            out = wide.to(query.dtype)
        ctx.save_for_backward(*heads, out, lse)
        ctx.runs, ctx.scale, ctx.scoring, ctx.continued = runs, scale, scoring, continued
        return out

    @staticmethod
    def backward(ctx, grad_out):  # noqa: ANN001, ANN205
        *heads, out, lse = ctx.saved_tensors
        grad_out = grad_out.contiguous()
        found = [
            _kernel(run, ctx.scale, ctx.scoring).backward(
                run.of(grad_out),
                *(run.of(tensor) for tensor in heads),
                run.of(out),
                run.of(lse).contiguous(),
            )
            for run in ctx.runs
        ]
        grads = [
            torch.cat([as_tokens(part) for part in of_all]) for of_all in zip(*found, strict=True)
        ]
        if ctx.continued:
            grads = [grad.to(lse.dtype) for grad in grads]
            for part in ctx.continued:
                part.add_gradients(grads, grad_out, heads, out, lse, ctx.scale, ctx.scoring)
        grads = [grad.to(tensor.dtype) for grad, tensor in zip(grads, heads, strict=True)]
        return *grads, *(None,) * 4


def _kernel(run: Run, scale: float, scoring: Scoring) -> FlashBlock | ScoredBlock:
    """What computes a run."""
    if not scoring.matters(run.length):
        return FlashBlock(causal=True, scale=scale)
    places = torch.arange(run.length)
    return ScoredBlock(scoring, scale, places, places)
