"""The loss of KTO, over single answers that are desirable or not."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megarlhf.algo.loss import Divisors, SequenceMean
from megarlhf.algo.pairs import SequenceSums
from megarlhf.algo.preference_loss import REFERENCE
from megarlhf.config.schema import UnpairedLossConfig
from megarlhf.data.records import MicroBatch
from megarlhf.data.records import Sequence as TokenSequence

KL = "kl"


@dataclass
class UnpairedLoss(SequenceMean):
    """weight (1 - sigmoid(+-beta (log-ratio - z))), + for a desirable answer (a `TokenLoss`).

    Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8. Reads the field ``reference_logprobs`` and the
    values ``desirable`` (1 or 0) and ``kl``, the reference point z >= 0, which is of the whole batch.

    Args:
        config: Coefficients.
        sequence_sums: See `SequenceSums`.
    """

    config: UnpairedLossConfig
    sequence_sums: SequenceSums
    temperature: float = 1.0
    needs_entropy: bool = False
    reads_trained_only = True
    metric_names: tuple[str, ...] = ("accuracy", "kl", "desirable_reward", "undesirable_reward")

    def divisors(self, sequences: Sequence[TokenSequence]) -> Divisors:
        """Sequences; of the rewards the desirable ones and the others."""
        counted = [s for s in sequences if any(s.loss_mask)]
        desirable = sum(s.values["desirable"] for s in counted)
        by_name = {
            "desirable_reward": desirable,
            "undesirable_reward": len(counted) - desirable,
        }
        return Divisors(len(counted), len(counted), by_name)

    def __call__(
        self, logprobs: torch.Tensor, entropy: torch.Tensor | None, batch: MicroBatch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Sums over the answers; one without a trained token is not counted."""
        config, mask = self.config, batch.loss_mask
        desirable, kl = batch.values["desirable"], batch.values[KL]
        log_ratios = self.sequence_sums((logprobs - batch.fields[REFERENCE]) * mask, batch)
        counted = (self.sequence_sums(mask, batch) > 0) / batch.copies
        gain = (2 * desirable - 1) * (log_ratios - kl)
        weight = config.desirable_weight * desirable + config.undesirable_weight * (1 - desirable)
        loss = weight * (1 - torch.sigmoid(config.beta * gain))
        rewards = config.beta * log_ratios
        metrics = {
            "accuracy": (gain > 0).to(loss.dtype),
            "kl": kl,
            "desirable_reward": rewards * desirable,
            "undesirable_reward": rewards * (1 - desirable),
        }
        return (loss * counted).sum(), {name: (v * counted).sum() for name, v in metrics.items()}
