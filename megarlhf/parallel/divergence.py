"""How far a model's next-token distribution is from a teacher's, over a vocabulary cut across ranks.

Shapes: T tokens, V vocabulary, Vp = padded V / tp columns on this rank, k of the teacher's best tokens.
Chunks of tokens as in `parallel/logprobs.py`, so no fp32 copy of all logits exists.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist

CHUNK_TOKENS = 1024


class Divergence(NamedTuple):
    """A divergence between a student's distribution p and a teacher's q, as a sum over the vocabulary.

    Attributes:
        terms: From log p and log q, of one shape, and a weight in (0, 1) to the terms.
        slopes: Likewise, to the derivatives of the terms by log p.
    """

    terms: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    slopes: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


def _log_mixture(log_p: torch.Tensor, log_q: torch.Tensor, weight: float) -> torch.Tensor:
    shares = torch.tensor([1 - weight, weight], dtype=torch.float64).log().tolist()
    return torch.logaddexp(log_p + shares[0], log_q + shares[1])


def _js_terms(log_p: torch.Tensor, log_q: torch.Tensor, weight: float) -> torch.Tensor:
    middle = _log_mixture(log_p, log_q, weight)
    from_teacher = weight * log_q.exp() * (log_q - middle)
    return from_teacher + (1 - weight) * log_p.exp() * (log_p - middle)


def _js_slopes(log_p: torch.Tensor, log_q: torch.Tensor, weight: float) -> torch.Tensor:
    return (1 - weight) * log_p.exp() * (log_p - _log_mixture(log_p, log_q, weight))


# forward: KL(q || p), Hinton et al. 2015, arXiv:1503.02531. reverse: KL(p || q), Gu et al. 2023,
# arXiv:2306.08543. js: w KL(q || m) + (1 - w) KL(p || m), m = w q + (1 - w) p, Agarwal et al. 2023,
# arXiv:2306.13649, eq. 1.
DIVERGENCES = {
    "forward": Divergence(
        lambda log_p, log_q, weight: log_q.exp() * (log_q - log_p),
        lambda log_p, log_q, weight: -log_q.exp(),
    ),
    "reverse": Divergence(
        lambda log_p, log_q, weight: log_p.exp() * (log_p - log_q),
        lambda log_p, log_q, weight: log_p.exp() * (log_p - log_q + 1),
    ),
    "js": Divergence(_js_terms, _js_slopes),
}


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
    scaled = scaled.to(_compute_dtype(logits)) / temperature
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


def top_k_divergence(
    logits: torch.Tensor,
    logprobs: torch.Tensor,
    targets: torch.Tensor,
    teacher: torch.Tensor,
    ids: torch.Tensor,
    *,
    kind: str,
    weight: float,
    group: dist.ProcessGroup | None = None,
    temperature: float = 1.0,
) -> torch.Tensor:
    """The divergence between the distributions over the teacher's k best tokens and "any other".

    At most the whole divergence, by the data processing inequality.

    Args:
        logits: [T, Vp], this rank's columns; gradients flow through them.
        logprobs: [T], log-probability of ``targets`` under softmax(logits / temperature); gradients
            flow through them too.
        targets: int64 [T].
        teacher: [T, k] log-probabilities of the teacher's best tokens.
        ids: int64 [T, k], which those are.
        kind: A key of `DIVERGENCES`.
        weight: The teacher's share in the mixture of ``js``.
        group: Tensor-parallel group; None for a single rank.
        temperature: Of the student's softmax.

    Returns:
        [T], of the dtype of ``logprobs``.
    """
    wanted = torch.cat([ids, targets[:, None]], dim=1)
    picked = _PickColumns.apply(logits, wanted, group).to(logprobs.dtype) / temperature
    student = picked[:, :-1] - picked[:, -1:] + logprobs[:, None]
    log_p, log_q = _with_rest(student), _with_rest(teacher.to(logprobs.dtype))
    return DIVERGENCES[kind].terms(log_p, log_q, weight).sum(-1)


def _with_rest(log_probabilities: torch.Tensor) -> torch.Tensor:
    """One more column: the log-probability of everything else, at least that of rounding."""
    least = torch.finfo(log_probabilities.dtype).eps
    rest = (1 - log_probabilities.exp().sum(-1, keepdim=True)).clamp(min=least)
    return torch.cat([log_probabilities, rest.log()], dim=-1)


def _compute_dtype(logits: torch.Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _own_columns(
    logits: torch.Tensor, vocab_size: int, group: dist.ProcessGroup | None
) -> tuple[torch.Tensor, int]:
    """This rank's columns that are no padding, and the id of the first."""
    start = (group.rank() if group is not None else 0) * logits.shape[-1]
    return logits[:, : max(0, min(logits.shape[-1], vocab_size - start))], start


def _all_reduce(
    tensor: torch.Tensor, group: dist.ProcessGroup | None, op: dist.ReduceOp.RedOpType
) -> torch.Tensor:
    if group is not None and group.size() > 1:
        dist.all_reduce(tensor, op=op, group=group)
    return tensor


def _log_sum_exp(scaled: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """[T], over all ranks' columns."""
    peak = scaled.new_full(scaled.shape[:1], float("-inf"))
    if scaled.shape[1]:
        peak = scaled.amax(-1)
    peak = _all_reduce(peak, group, dist.ReduceOp.MAX)
    sums = (scaled - peak[:, None]).exp().sum(-1)
    return peak + _all_reduce(sums, group, dist.ReduceOp.SUM).log()


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
        dtype = _compute_dtype(logits)
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
        _all_reduce(sums, group, dist.ReduceOp.SUM)
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


class _PickColumns(torch.autograd.Function):
    """[T, k] of [T, Vp] on each rank, by global ids."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        logits: torch.Tensor,
        ids: torch.Tensor,
        group: dist.ProcessGroup | None,
    ) -> torch.Tensor:
        start = (group.rank() if group is not None else 0) * logits.shape[-1]
        local = ids - start
        mine = (local >= 0) & (local < logits.shape[-1])
        column = local.clamp(0, logits.shape[-1] - 1)
        picked = logits.gather(1, column).to(_compute_dtype(logits)) * mine
        ctx.save_for_backward(column, mine)
        ctx.shape, ctx.dtype = logits.shape, logits.dtype
        return _all_reduce(picked, group, dist.ReduceOp.SUM)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple:  # noqa: ANN001
        column, mine = ctx.saved_tensors
        grad_logits = grad.new_zeros(ctx.shape)
        grad_logits.scatter_add_(1, column, grad * mine)
        return grad_logits.to(ctx.dtype), None, None
