"""The critic's loss over the packed tokens of a micro-batch."""

from dataclasses import dataclass

import torch

from megarlhf.algo.aggregation import token_weights
from megarlhf.algo.loss import TokenMean
from megarlhf.config.schema import AlgorithmConfig
from megarlhf.data.records import MicroBatch


def clipped_value_error(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2) / 2 and whether the bound was active.

    The value loss of PPO's reference implementation (Dhariwal et al. 2017, OpenAI baselines, ppo2;
    Engstrom et al. 2020, arXiv:2005.12729, section 3). All tensors have one shape; without a clip it
    is the squared error. Gradients flow through ``values``.
    """
    plain = (values - returns).square()
    if clip is None:
        return 0.5 * plain, torch.zeros_like(plain, dtype=torch.bool)
    near = old_values + (values - old_values).clamp(-clip, clip)
    bounded = (near - returns).square()
    return 0.5 * torch.maximum(plain, bounded), bounded > plain


@dataclass
class ValueLoss(TokenMean):
    """The critic's loss (a `TokenLoss` whose first argument is the values [T]).

    Reads the fields ``old_values``, ``returns`` and ``loss_weight``.

    Args:
        config: ``value_clip`` and ``aggregation``.
        max_tokens: The longest response: the constant of the aggregation ``sequence_sum``.
    """

    config: AlgorithmConfig
    max_tokens: int
    temperature: float = 1.0
    needs_entropy: bool = False
    metric_names: tuple[str, ...] = ("value_loss", "value_clip_fraction", "value")

    def __call__(
        self, values: torch.Tensor, entropy: torch.Tensor | None, batch: MicroBatch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss summed with the aggregation's weights; metrics summed over the trained tokens."""
        fields, mask = batch.fields, batch.loss_mask
        error, clipped = clipped_value_error(
            values, fields["old_values"], fields["returns"], self.config.value_clip
        )
        per_token = {
            "value_loss": error,
            "value_clip_fraction": clipped.to(mask.dtype),
            "value": values,
        }
        total = (error * token_weights(self.config, batch, self.max_tokens)).sum()
        return total, {name: (value * mask).sum() for name, value in per_token.items()}
