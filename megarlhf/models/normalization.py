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
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.zero_centered:
            return (wide * (1 + self.weight.to(wide.dtype))).to(hidden.dtype)
        return self.weight * wide.to(hidden.dtype)


class NormThenAdd(RMSNorm):
    """residual + norm(output of a sublayer), where Megatron's layer adds bias, dropout and residual."""

    def forward(self, *_: Any) -> Callable[..., torch.Tensor]:
        """Megatron asks for a function of (output, bias), residual and dropout probability."""
        return self._add

    def _add(
        self, output_and_bias: tuple[torch.Tensor, None], residual: torch.Tensor, *_: Any
    ) -> torch.Tensor:
        return residual + super().forward(output_and_bias[0])
