"""How far a model's next-token distribution is from a teacher's, over a vocabulary cut across ranks.

Shapes: T tokens, V vocabulary, Vp = padded V / tp columns on this rank.
Chunks of tokens as in `parallel/logprobs.py`, so no fp32 copy of all logits exists.
"""

import torch
import torch.distributed as dist

from megarlhf.algo.divergences import DIVERGENCES, Divergence

CHUNK_TOKENS = 1024


def vocab_parallel_log_softmax(
    logits: torch.Tensor,
    *,
    vocab_size: int,
    group: dist.ProcessGroup | None = None,
    temperature: float = 1.0,
) -> torch.Tensor:
    """log softmax(logits / temperature) over the whole vocabulary; without a gradient.

    Args:
        logits: [T, Vp] floating point, this rank's columns.
        vocab_size: V without padding.
        group: Tensor-parallel group; None for a single rank.
        temperature: Of the softmax.

    Returns:
        fp32 (fp64 for fp64 logits) [T, columns of this rank that are no padding].
    """
    scaled, _ = _own_columns(logits, vocab_size, group)
    scaled = scaled.to(compute_dtype(logits)) / temperature
    return scaled - _log_sum_exp(scaled, group)[:, None]


def vocab_parallel_divergence(
    logits: torch.Tensor,
    teacher: torch.Tensor,
    *,
    kind: str,
    weight: float,
    vocab_size: int,
    group: dist.ProcessGroup | None = None,
    temperature: float = 1.0,
) -> torch.Tensor:
    """The divergence of softmax(logits / temperature) from a teacher's distribution.

    Args:
        logits: [T, Vp] floating point, this rank's columns; gradients flow through them.
        teacher: [T, n] log-probabilities, this rank's n columns that are no padding.
        kind: A key of `DIVERGENCES`.
        weight: The teacher's share in the mixture of ``js``.
        vocab_size: V without padding.
        group: Tensor-parallel group; None for a single rank.
        temperature: Of the student's softmax.

    Returns:
        fp32 (fp64 for fp64 logits) [T], nats, the same on every rank of the group.
    """
    return _VocabParallelDivergence.apply(
        logits, teacher, DIVERGENCES[kind], weight, vocab_size, group, temperature
    )


def compute_dtype(logits: torch.Tensor) -> torch.dtype:
    """Of what is computed from logits: fp32, or fp64 where they are."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _own_columns(
    logits: torch.Tensor, vocab_size: int, group: dist.ProcessGroup | None
) -> tuple[torch.Tensor, int]:
    """This rank's columns that are no padding, and the id of the first."""
    start = (group.rank() if group is not None else 0) * logits.shape[-1]
    return logits[:, : max(0, min(logits.shape[-1], vocab_size - start))], start


def all_reduce(
    tensor: torch.Tensor, group: dist.ProcessGroup | None, op: dist.ReduceOp.RedOpType
) -> torch.Tensor:
    """Reduce in place where there are several ranks; returns the tensor."""
    if group is not None and group.size() > 1:
        dist.all_reduce(tensor, op=op, group=group)
    return tensor


def _log_sum_exp(scaled: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """[T], over all ranks' columns."""
    peak = scaled.new_full(scaled.shape[:1], float("-inf"))
    if scaled.shape[1]:
        peak = scaled.amax(-1)
    peak = all_reduce(peak, group, dist.ReduceOp.MAX)
    sums = (scaled - peak[:, None]).exp().sum(-1)
    return peak + all_reduce(sums, group, dist.ReduceOp.SUM).log()


class _VocabParallelDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        logits: torch.Tensor,
        teacher: torch.Tensor,
        divergence: Divergence,
        weight: float,
        vocab_size: int,
        group: dist.ProcessGroup | None,
        temperature: float,
    ) -> torch.Tensor:
        dtype = compute_dtype(logits)
        own, _ = _own_columns(logits, vocab_size, group)
        normalizer = logits.new_empty(len(own), dtype=dtype)
        for begin in range(0, len(own), CHUNK_TOKENS):
            rows = slice(begin, begin + CHUNK_TOKENS)
            normalizer[rows] = _log_sum_exp(own[rows].to(dtype) / temperature, group)
        sums = logits.new_zeros((2, len(own)), dtype=dtype)  # the divergence; its slopes' sum
        for begin in range(0, len(own), CHUNK_TOKENS):
            rows = slice(begin, begin + CHUNK_TOKENS)
            log_p = own[rows].to(dtype) / temperature - normalizer[rows, None]
            log_q = teacher[rows].to(dtype)
            sums[0, rows] = divergence.terms(log_p, log_q, weight).sum(-1)
            sums[1, rows] = divergence.slopes(log_p, log_q, weight).sum(-1)
        all_reduce(sums, group, dist.ReduceOp.SUM)
        ctx.save_for_backward(logits, teacher, normalizer, sums[1])
        ctx.divergence, ctx.weight, ctx.temperature = divergence, weight, temperature
        ctx.columns = own.shape[1]
        return sums[0]

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple:  # noqa: ANN001
        logits, teacher, normalizer, slopes_sum = ctx.saved_tensors
        grad_logits = torch.zeros_like(logits)
        scale = grad / ctx.temperature
        for begin in range(0, len(logits), CHUNK_TOKENS):
            rows = slice(begin, begin + CHUNK_TOKENS)
            scaled = logits[rows, : ctx.columns].to(normalizer.dtype) / ctx.temperature
            log_p = scaled - normalizer[rows, None]
            slopes = ctx.divergence.slopes(log_p, teacher[rows].to(log_p.dtype), ctx.weight)
            # log p = z - log sum exp z: each slope also moves the normalizer.
            slopes -= log_p.exp() * slopes_sum[rows, None]
            grad_logits[rows, : ctx.columns] = slopes * scale[rows, None]
        return grad_logits, None, None, None, None, None, None
