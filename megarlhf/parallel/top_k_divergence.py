"""How far a model's next-token distribution is from a teacher's, told from the teacher's best tokens.

Shapes: T tokens, Vp = padded V / tp columns on this rank, k of the teacher's best tokens.
"""

import torch
import torch.distributed as dist

from megarlhf.algo.divergences import DIVERGENCES
from megarlhf.parallel.divergence import all_reduce, compute_dtype


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
        picked = logits.gather(1, column).to(compute_dtype(logits)) * mine
        ctx.save_for_backward(column, mine)
        ctx.shape, ctx.dtype = logits.shape, logits.dtype
        return all_reduce(picked, group, dist.ReduceOp.SUM)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple:  # noqa: ANN001
        column, mine = ctx.saved_tensors
        grad_logits = grad.new_zeros(ctx.shape)
        grad_logits.scatter_add_(1, column, grad * mine)
        return grad_logits.to(ctx.dtype), None, None
