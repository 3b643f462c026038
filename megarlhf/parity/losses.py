"""What is minimized: the same loss for our ranks and for Hugging Face."""

from dataclasses import dataclass, field

import torch

from megarlhf.algo.loss import TokenMean
from megarlhf.algo.supervised_loss import NegativeLogLikelihood
from megarlhf.data.records import MicroBatch
from megarlhf.engine.loss import TokenLoss
from megarlhf.parity.batch import TARGET
from megarlhf.parity.records import Pack


@dataclass
class SquaredError(TokenMean):
    """(value - target)^2 of every trained token (a `TokenLoss`)."""

    metric_names: tuple[str, ...] = ()
    temperature: float = 1.0
    needs_entropy: bool = False

    def __call__(
        self, values: torch.Tensor, entropy: torch.Tensor | None, batch: MicroBatch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Sum over the trained tokens."""
        return ((values - batch.fields[TARGET]).square() * batch.loss_mask).sum(), {}


@dataclass
class Recorded:
    """A loss that remembers the micro-batches that it was called for (a `TokenLoss`)."""

    loss: TokenLoss
    packs: list[Pack] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.metric_names = self.loss.metric_names
        self.temperature_at = self.loss.temperature_at
        self.needs_entropy = self.loss.needs_entropy
        self.divisors = self.loss.divisors
        self.from_logits = self.loss.from_logits
        self.reads_trained_only = False  # logits are compared at every token

    def __call__(
        self, output: torch.Tensor, entropy: torch.Tensor | None, batch: MicroBatch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What the loss returns."""
        self.packs.append(Pack(batch.order, batch.lengths, batch.position_ids.tolist()))
        return self.loss(output, entropy, batch)


def loss_of(*, scalar: bool) -> TokenLoss:
    """The loss of a scalar head or of a language model's."""
    return SquaredError() if scalar else NegativeLogLikelihood()
