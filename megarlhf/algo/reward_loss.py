"""The losses of reward models: of pairs of answers and of steps."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from megarlhf.algo.loss import PairMean, TokenMean
from megarlhf.algo.pairs import SequenceSums, chosen_and_rejected
from megarlhf.data.records import MicroBatch


@dataclass
class PairwiseRewardLoss(PairMean):
    """-log sigmoid(s_chosen - s_rejected - margin) + center_coef (s_chosen + s_rejected)^2.

    A `TokenLoss` whose first argument is the values [T] of a scalar head; a sequence's score s is
    the value at its last token. Bradley-Terry: Ouyang et al. 2022, arXiv:2203.02155, eq. 1; margin:
    Touvron et al. 2023 (Llama 2), arXiv:2307.09288, eq. 2; centred: Eisenstein et al. 2023,
    arXiv:2312.09244, section 3.1. Reads the value ``margin`` of each sequence where it has one.

    Args:
        sequence_sums: See `SequenceSums`.
        center_coef: Weight of the second term.
    """

    sequence_sums: SequenceSums
    center_coef: float = 0.0
    temperature: float = 1.0
    needs_entropy: bool = False
    metric_names: tuple[str, ...] = ("accuracy", "margin", "chosen_score", "rejected_score")

    def __call__(
        self, values: torch.Tensor, entropy: torch.Tensor | None, batch: MicroBatch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Sums over the pairs; a pair without a trained token is not counted."""
        chosen, rejected = chosen_and_rejected(
            self.sequence_sums(values * batch.ends, batch), batch
        )
        counted, _ = chosen_and_rejected(
            (self.sequence_sums(batch.loss_mask, batch) > 0) / batch.copies, batch
        )
        advantage = chosen - rejected
        short = advantage
        if "margin" in batch.values:
            short = advantage - chosen_and_rejected(batch.values["margin"], batch)[0]
        loss = -F.logsigmoid(short)
        if self.center_coef:
            loss = loss + self.center_coef * (chosen + rejected).square()
        metrics = {
            "accuracy": (advantage > 0).to(values.dtype),
            "margin": advantage,
            "chosen_score": chosen,
            "rejected_score": rejected,
        }
        return (loss * counted).sum(), {name: (v * counted).sum() for name, v in metrics.items()}


@dataclass
class StepRewardLoss(TokenMean):
    """The binary cross-entropy of a process reward model at each step, a mean over the steps.

    A `TokenLoss` whose first argument is the values [T] of a scalar head: the logit of a step's
    being right. Reads the field ``labels``, the probability that it is (1 or 0 where labels are
    hard), at the trained tokens. Lightman et al. 2023, arXiv:2305.20050, section 2.6; soft labels:
    Wang et al. 2023 (Math-Shepherd), arXiv:2312.08935, eq. 4.
    """

    temperature: float = 1.0
    needs_entropy: bool = False
    metric_names: tuple[str, ...] = ("accuracy",)

    def __call__(
        self, values: torch.Tensor, entropy: torch.Tensor | None, batch: MicroBatch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Sums over the steps; a step is judged rightly on the label's side of one half."""
        labels, mask = batch.fields["labels"], batch.loss_mask
        loss = F.binary_cross_entropy_with_logits(values, labels.to(values.dtype), reduction="none")
        right = ((values > 0) == (labels > 0.5)).to(values.dtype)
        return (loss * mask).sum(), {"accuracy": (right * mask).sum()}
