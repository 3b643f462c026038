"""The loss of supervised fine-tuning."""

from dataclasses import dataclass

import torch

from megarlhf.algo.loss import TokenMean
from megarlhf.data.records import MicroBatch


@dataclass
class NegativeLogLikelihood(TokenMean):
    """-log p of every trained token (a `TokenLoss`); the engine makes it a mean over all of them."""

    metric_names: tuple[str, ...] = ()
    temperature: float = 1.0
    needs_entropy: bool = False
    reads_trained_only = True

    def __call__(
        self, logprobs: torch.Tensor, entropy: torch.Tensor | None, batch: MicroBatch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Sum over the trained tokens."""
        return -(logprobs * batch.loss_mask).sum(), {}
