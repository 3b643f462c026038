"""The loss of knowledge distillation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from megarlhf.algo.loss import TokenMean
from megarlhf.config.schema import DistillationLossConfig
from megarlhf.data.records import MicroBatch


@dataclass
class DistillationLoss(TokenMean):
    """kd_coef temperature^2 D - (1 - kd_coef) log p of every trained token (a `TokenLoss`).

    D is the divergence from the teacher's distribution, both at the temperature, whose square keeps
    the gradient's size (Hinton et al. 2015, arXiv:1503.02531, section 2).

    Args:
        config: Coefficients.
        from_logits: Finds D [T]; see `megarlhf.engine.teacher.Lesson`.
    """

    config: DistillationLossConfig
    from_logits: Callable[..., torch.Tensor] | None
    temperature: float = 1.0
    needs_entropy: bool = False
    metric_names: tuple[str, ...] = ("divergence", "nll")

    def __call__(
        self, logprobs: torch.Tensor, divergence: torch.Tensor | None, batch: MicroBatch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Sums over the trained tokens."""
        config = self.config
        far = (divergence * batch.loss_mask).sum()
        nll = -(logprobs * batch.loss_mask).sum()
        total = config.kd_coef * config.temperature**2 * far + (1 - config.kd_coef) * nll
        return total, {"divergence": far, "nll": nll}
