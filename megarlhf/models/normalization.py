"""RMSNorm for Megatron's layer specs, also under sequence parallelism."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class RMSNorm(nn.Module):
    """x / rms(x) * weight, over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467).

    Under sequence parallelism every rank normalizes its own tokens, so the weight's gradient is
    partial: the mark ``weight.sequence_parallel`` makes Megatron sum it over the tensor-parallel
    ranks. Without it gradients are silently wrong.

    With Megatron's ``layernorm_zero_centered_gamma`` the factor is 1 + weight, multiplied before the
    result is rounded to the input's dtype, as Gemma's is.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.zero_centered = config.layernorm_zero_centered_gamma
        device = torch.cuda.current_device()
        self.weight = nn.Parameter(
            torch.ones(hidden_size, dtype=config.params_dtype, device=device)
        )
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Normalize ``hidden`` [..., H]; the statistics are in fp32 as in Hugging Face's."""
        if self.zero_centered:
            weight = 1 + self.weight.to(_wide(hidden.dtype))
            return _Normalized.apply(hidden, weight, self.eps).to(hidden.dtype)
        return _Normalized.apply(hidden, self.weight, self.eps)


class _Normalized(torch.autograd.Function):
    """x / rms(x) rounded to the weight's dtype, times the weight.

    With n = x / rms(x): dweight = sum(dy n) over the tokens and dx = (dy weight - n mean(dy weight n)) /
    rms(x). Only x and rms(x) are kept for it, and it takes half the passes over memory that the
    operators' own gradients take.
    """

    @staticmethod
    def forward(ctx, hidden, weight, eps):  # noqa: ANN001, ANN205
        wide = hidden.to(_wide(hidden.dtype))
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(hidden, weight, inverse)
        return (wide * inverse).to(weight.dtype).mul_(weight)

    @staticmethod
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        hidden, weight, inverse = ctx.saved_tensors
        normalized = hidden.to(inverse.dtype) * inverse
        grad = grad.to(inverse.dtype)
        product = grad * normalized
        grad_weight = product.flatten(0, -2).sum(0).to(weight.dtype)
        wide_weight = weight.to(inverse.dtype)
        along = (product @ wide_weight).div_(-hidden.shape[-1])[..., None]
        grad_hidden = (grad * wide_weight).addcmul_(normalized, along).mul_(inverse)
        return grad_hidden.to(hidden.dtype), grad_weight, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class NormThenAdd(RMSNorm):
    """residual + norm(output of a sublayer), where Megatron's layer adds bias, dropout and residual."""

    def forward(self, *_: Any) -> Callable[..., torch.Tensor]:
        """Megatron asks for a function of (output, bias), residual and dropout probability."""
        return self._add

    def _add(
        self, output_and_bias: tuple[torch.Tensor, None], residual: torch.Tensor, *_: Any
    ) -> torch.Tensor:
        return residual + super().forward(output_and_bias[0])
