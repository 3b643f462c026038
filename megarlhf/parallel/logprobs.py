"""Log-probabilities and entropy over a vocabulary that is cut across tensor-parallel ranks.

Shapes: T tokens, V vocabulary, Vp = padded V / tp columns on this rank. The logits are read in
chunks of tokens, so no fp32 copy of all of them exists, in the forward or in the backward pass.
"""

import torch
import torch.distributed as dist

CHUNK_TOKENS = 1024
CACHED_ELEMENTS = 2**18  # on a CPU: so many logits stay in its cache from one operator to the next


def vocab_parallel_logprobs(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    vocab_size: int,
    group: dist.ProcessGroup | None = None,
    temperature: float | torch.Tensor = 1.0,
    with_entropy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probability of each target under softmax(logits / temperature), and the entropy.

    Args:
        logits: [T, Vp] floating point, this rank's columns.
        targets: int64 [T], global vocabulary ids.
        vocab_size: V without padding; columns beyond it take no part.
        group: Tensor-parallel group; None for a single rank.
        temperature: Sampling temperature the probabilities are for: one, or [T].
        with_entropy: Also compute the entropy.

    Returns:
        logprobs fp32 [T] (nats, same on every rank of the group; fp64 for fp64 logits) and
        entropy [T] or None.

    With p = softmax(logits / temperature), entropy H and the gradients g of the log-probability and h of
    the entropy, dlogits = (g * (onehot - p) - h * p * (log p + H)) / temperature.
    """
    logprobs, entropy = _VocabParallelLogprobs.apply(
        logits, targets, vocab_size, group, temperature, with_entropy
    )
    return logprobs, entropy if with_entropy else None


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _sum_over(tensor: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    if group is not None and group.size() > 1:
        dist.all_reduce(tensor, group=group)
    return tensor


def chunk_tokens(logits: torch.Tensor) -> int:
    """Of how many tokens logits [T, Vp] are read at a time."""
    if logits.is_cuda:
        return CHUNK_TOKENS
    return min(CHUNK_TOKENS, max(1, CACHED_ELEMENTS // max(1, logits.shape[1])))


def _chunks(logits: torch.Tensor) -> list[slice]:
    """Rows to read at a time; none where a rank has no columns."""
    tokens, columns = logits.shape
    size = chunk_tokens(logits)
    return [slice(begin, begin + size) for begin in range(0, tokens if columns else 0, size)]


def _scaled(
    logits: torch.Tensor, rows: slice, dtype: torch.dtype, temperature: float | torch.Tensor
) -> torch.Tensor:
    """Some rows, divided by the temperature; not to be written to."""
    chunk = logits[rows].to(dtype)
    is_one = not torch.is_tensor(temperature) and temperature == 1
    return chunk if is_one else chunk / _at(temperature, rows)


def _at(temperature: float | torch.Tensor, rows: slice) -> float | torch.Tensor:
    """The temperature of some rows, to divide their logits by."""
    return temperature[rows, None] if torch.is_tensor(temperature) else temperature


class _VocabParallelLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        logits: torch.Tensor,
        targets: torch.Tensor,
        vocab_size: int,
        group: dist.ProcessGroup | None,
        temperature: float | torch.Tensor,
        with_entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        columns = logits.shape[-1]
        rank, size = (group.rank(), group.size()) if group is not None else (0, 1)
        start = rank * columns
        valid = max(0, min(columns, vocab_size - start))  # the rest is padding
        dtype = _compute_dtype(logits.dtype)
        tokens = logits.shape[0]
        if torch.is_tensor(temperature):
            temperature = temperature.to(dtype)

        peak = logits.new_full((tokens,), float("-inf"), dtype=dtype)
        if valid:
            peak = logits[:, :valid].amax(dim=-1).to(dtype)
        if size > 1:
            dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
        peak = peak / temperature

        local = targets - start
        mine = (local >= 0) & (local < valid)
        column = local.clamp(0, max(valid - 1, 0))
        # rows: sum of exponentials, target's logit, sum of logit * exponential (for the entropy)
        sums = logits.new_zeros((3 if with_entropy else 2, tokens), dtype=dtype)
        for rows in _chunks(logits[:, :valid]):
            shifted = _scaled(logits[:, :valid], rows, dtype, temperature) - peak[rows, None]
            picked = shifted.gather(1, column[rows, None]).squeeze(1)
            sums[1, rows] = torch.where(mine[rows], picked, 0)
            if with_entropy:
                exponentials = shifted.exp()
                sums[0, rows] = exponentials.sum(-1)
                sums[2, rows] = (shifted * exponentials).sum(-1)
            else:
                sums[0, rows] = shifted.exp_().sum(-1)
        _sum_over(sums, group)

        log_normalizer = sums[0].log()
        logprobs = sums[1] - log_normalizer
        entropy = log_normalizer - sums[2] / sums[0] if with_entropy else logprobs.new_empty(0)
        ctx.save_for_backward(logits, column, mine, peak + log_normalizer, entropy)
        ctx.valid, ctx.temperature = valid, temperature
        ctx.set_materialize_grads(False)  # an entropy that is only looked at costs nothing
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad: torch.Tensor | None, grad_entropy: torch.Tensor | None) -> tuple:  # noqa: ANN001
        logits, column, mine, lse, entropy = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        grad_logits[:, ctx.valid :] = 0
        scale = torch.zeros_like(lse) if grad is None else grad / ctx.temperature
        for rows in _chunks(logits[:, : ctx.valid]):
            scaled = _scaled(logits[:, : ctx.valid], rows, lse.dtype, ctx.temperature)
            chunk = scaled - lse[rows, None]  # log p
            if grad_entropy is None:
                chunk.exp_().mul_(-scale[rows, None])
            else:
                surprise = chunk + entropy[rows, None]
                surprise.mul_(grad_entropy[rows, None] / _at(ctx.temperature, rows))
                surprise.add_(scale[rows, None])
                chunk.exp_().mul_(surprise).neg_()
            chunk.scatter_add_(
                1, column[rows, None], torch.where(mine[rows], scale[rows], 0)[:, None]
            )
            grad_logits[rows, : ctx.valid] = chunk
        return grad_logits, None, None, None, None, None
