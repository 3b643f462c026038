"""AdamW in the shape of Apex's FusedAdam, for machines with neither Apex nor Transformer Engine.

Megatron's distributed optimizer saves and loads correctly only with an optimizer that keeps its step
count in the parameter group, as FusedAdam does; with torch's AdamW every parameter shares one step
tensor after a load and Adam's bias correction is silently wrong.
"""

from collections.abc import Callable
from typing import Any

import torch


class GroupStepAdam(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) on torch's fused kernel.

    Args:
        params: Parameters or groups; parameters and their ``.grad`` are fp32.
        lr: Learning rate.
        betas: Decay rates of the first and second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled decay.
        adam_w_mode: Must be True; taken because FusedAdam takes it.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
    ) -> None:
        if not adam_w_mode:
            raise ValueError("only decoupled weight decay is implemented")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        # Never read here; a FusedAdam that goes on from this one's checkpoint looks for it.
        defaults["bias_correction"] = True
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            group["step"] = group.get("step", 0) + 1
            for param in params:
                if not self.state[param]:
                    self.state[param]["exp_avg"] = torch.zeros_like(param)
                    self.state[param]["exp_avg_sq"] = torch.zeros_like(param)
            adamw(
                group,
                params,
                [p.grad for p in params],
                [self.state[p]["exp_avg"] for p in params],
                [self.state[p]["exp_avg_sq"] for p in params],
            )


def adamw(
    group: dict[str, Any],
    params: list[torch.Tensor],
    gradients: list[torch.Tensor],
    averages: list[torch.Tensor],
    squares: list[torch.Tensor],
) -> None:
    """One step of a group's parameters, in place, on torch's fused kernel.

    Args:
        group: Settings, and ``step``: this one's number, from 1.
        params: fp32; the others match them one by one.
        gradients: Of them.
        averages: First moments.
        squares: Second moments.
    """
    # One for all: the kernel only reads it, and made on the device it keeps nobody waiting.
    step = torch.full((), group["step"], dtype=torch.float32, device=params[0].device)
    torch._fused_adamw_(
        params,
        gradients,
        averages,
        squares,
        [],
        [step] * len(params),
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )


def give_to_megatron() -> None:
    """Let Megatron use `GroupStepAdam` as if it were Apex's, where it has found no FusedAdam."""
    import megatron.core.optimizer as optimizers
    from megatron.core.optimizer import distrib_optimizer

    if not optimizers.USING_PYTORCH_OPTIMIZER:
        return
    optimizers.Adam = GroupStepAdam
    optimizers.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.Adam = GroupStepAdam
    distrib_optimizer.HAVE_APEX_OR_TE = True
    distrib_optimizer.USING_APEX_OPTIMIZER = True
