"""An optimizer step that is only taken where loss and gradient are finite numbers."""

import math
from typing import Any

import torch
import torch.distributed as dist


@torch.no_grad()
def step_if_finite(optimizer: Any, loss: float, device: torch.device) -> tuple[float, bool]:
    """Clip the gradient and step, as Megatron's own ``step`` does, if loss and norm are finite.

    A step that is skipped changes neither a parameter nor the optimizer's state. All ranks take it or
    none: one that found something else decides for all. Collective over all ranks.

    Args:
        optimizer: Megatron's chain of optimizers, the gradients reduced.
        loss: Of the step.
        device: Where the ranks communicate.

    Returns:
        The gradient's norm before it is clipped, and whether the step was taken.
    """
    optimizer.prepare_grads()
    norm = float(optimizer.get_grad_norm())
    broken = torch.tensor(float(not (math.isfinite(loss) and math.isfinite(norm))), device=device)
    dist.all_reduce(broken)
    if broken.item():
        return norm, False
    _clip(optimizer, norm)
    optimizer.step_with_ready_grads()
    return norm, True


def _clip(optimizer: Any, norm: float) -> None:
    from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

    for part in optimizer.chained_optimizers:
        parameters = [] if part.is_stub_optimizer else part.get_parameters()
        if parameters and part.config.clip_grad > 0:
            # On the host Adam has the parameters' gradients elsewhere: see `HostAdam`.
            elsewhere = part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8
            clip_grad_by_total_norm_fp32(parameters, part.config.clip_grad, norm, elsewhere)
