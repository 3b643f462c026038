"""RMSNorm for Megatron's layer specs, also under sequence parallelism."""

from typing import Any

import torch
from torch import nn


class RMSNorm(nn.Module):
    """x / rms(x) * weight, over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467).

    Under sequence parallelism every rank normalizes its own tokens, so the weight's gradient is
    partial: the mark ``weight.sequence_parallel`` makes Megatron sum it over the tensor-parallel
    ranks. Without it gradients are silently wrong.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        device = torch.cuda.current_device()
        self.weight = nn.Parameter(
            torch.ones(hidden_size, dtype=config.params_dtype, device=device)
        )
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Normalize ``hidden`` [..., H]; the statistics are in fp32 as in Hugging Face's."""
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(hidden.dtype)
