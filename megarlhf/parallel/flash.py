"""One block of attention with its log-sum-exp, by the flash kernel that the device has.

On a GPU that is FlashAttention for 16 bits, which shares key/value heads by itself, and the
memory-efficient kernel for 32; for 64, where a GPU has none, explicit scores.

Shapes: B blocks, n query heads, g key/value heads (g divides n), Lq and Lk tokens, d head size.
Never an [Lq, Lk] matrix.
"""

from typing import NamedTuple

import torch

from megarlhf.parallel.scored_attention import ScoredBlock, Scoring

_ops = torch.ops.aten
_HALF = (torch.float16, torch.bfloat16)


def block_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(scale q k') v and log sum exp(scale q k').

    Args:
        query: [B, n, Lq, d].
        key: [B, g, Lk, d].
        value: [B, g, Lk, d].
        causal: Token i of the query sees the keys up to i (Lq = Lk).
        scale: Of the scores.

    Returns:
        [B, n, Lq, d] in the query's dtype, and [B, n, Lq] in fp32 (fp64 for fp64).
    """
    on_cpu = query.device.type == "cpu"
    if query.dtype in _HALF and not on_cpu:
        out, lse, *_ = _ops._scaled_dot_product_flash_attention(
            query, key, value, 0.0, causal, False, scale=scale
        )
        return out, lse
    if query.dtype == torch.float64 and not on_cpu:
        return _scored(query, key, causal, scale).forward(query, key, value)
    key, value = _expand(key, query), _expand(value, query)
    if on_cpu:
        return _ops._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, scale=scale
        )
    out, lse, *_ = _ops._scaled_dot_product_efficient_attention(
        query, key, value, None, True, 0.0, causal, scale=scale
    )
    return out, lse[..., : query.shape[2]]


def block_backward(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    *,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of a block, given the *merged* output and log-sum-exp of all blocks.

    Since p = exp(scale q k' - lse) and the correction sum(dout * out) both belong to the whole row,
    a block's contribution needs nothing else of the other blocks.

    Returns:
        dquery [B, n, Lq, d], dkey and dvalue [B, g, Lk, d].
    """
    on_cpu = query.device.type == "cpu"
    if query.dtype in _HALF and not on_cpu:
        unused = torch.empty(2, dtype=torch.uint64, device=query.device)  # of dropout
        return _ops._scaled_dot_product_flash_attention_backward(
            *(grad_out, query, key, value, out, lse, None, None),
            *(query.shape[2], key.shape[2], 0.0, causal, unused, unused),
            scale=scale,
        )
    if query.dtype == torch.float64 and not on_cpu:
        return _scored(query, key, causal, scale).backward(grad_out, query, key, value, out, lse)
    wide_key, wide_value = _expand(key, query), _expand(value, query)
    if on_cpu:
        grads = _ops._scaled_dot_product_flash_attention_for_cpu_backward(
            *(grad_out, query, wide_key, wide_value, out, lse, 0.0, causal), scale=scale
        )
    else:
        padding = -lse.shape[-1] % 32  # the kernel wants rows aligned
        padded = torch.nn.functional.pad(lse, (0, padding), value=float("inf"))
        seed = torch.zeros((), dtype=torch.int64, device=query.device)
        grads = _ops._scaled_dot_product_efficient_attention_backward(
            *(grad_out, query, wide_key, wide_value, None, out, padded, seed, seed),
            *(0.0, (True, True, True, False), causal),
            scale=scale,
        )
    return grads[0], _reduce(grads[1], key), _reduce(grads[2], value)


def _scored(query: torch.Tensor, key: torch.Tensor, causal: bool, scale: float) -> ScoredBlock:
    """The same block by explicit scores."""
    own, others = query.shape[2], key.shape[2]
    first = 0 if causal else others  # behind all keys: every query sees them
    return ScoredBlock(Scoring(), scale, torch.arange(first, first + own), torch.arange(others))


def _expand(heads: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Repeat each key/value head for the query heads that share it."""
    times = query.shape[1] // heads.shape[1]
    return heads if times == 1 else heads.repeat_interleave(times, dim=1)


def _reduce(grad: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    """Undo `_expand` on a gradient."""
    if grad.shape == heads.shape:
        return grad
    blocks, groups, length, dim = heads.shape
    return grad.view(blocks, groups, -1, length, dim).sum(2)


class FlashBlock(NamedTuple):
    """A block whose only mask is the causal one, or none."""

    causal: bool
    scale: float

    def forward(self, *heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `block_forward`."""
        return block_forward(*heads, causal=self.causal, scale=self.scale)

    def backward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `block_backward`."""
        return block_backward(*tensors, causal=self.causal, scale=self.scale)
