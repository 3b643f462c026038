"""The losses of DPO and its relatives, over pairs of answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from megarlhf.algo.loss import PairMean
from megarlhf.algo.pairs import SequenceSums, chosen_and_rejected
from megarlhf.config.schema import PreferenceLossConfig
from megarlhf.data.records import MicroBatch

REFERENCE = "reference_logprobs"


def sigmoid(advantage: torch.Tensor, config: PreferenceLossConfig) -> torch.Tensor:
    """-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), with e the label smoothing.

    DPO: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; with e > 0 conservative DPO: Mitchell 2023,
    "A note on DPO with noisy preferences", eq. 3. ``advantage`` [p] is h, of any dtype.
    """
    logits, wrong = config.beta * advantage, config.label_smoothing
    return -(1 - wrong) * F.logsigmoid(logits) - wrong * F.logsigmoid(-logits)


def ipo(advantage: torch.Tensor, config: PreferenceLossConfig) -> torch.Tensor:
    """(h - 1 / (2 beta))^2; Azar et al. 2023, arXiv:2310.12036, eq. 17, with tau = beta."""
    return (advantage - 1 / (2 * config.beta)).square()


class Kind(NamedTuple):
    """A way to make a loss of what the policy prefers more than the reference does.

    Attributes:
        loss: From h [p], the chosen answer's log-ratio less the rejected one's, to the loss [p].
        per_token: Log-ratios are means over an answer's tokens, not sums.
    """

    loss: Callable[[torch.Tensor, PreferenceLossConfig], torch.Tensor]
    per_token: bool


# IPO's authors average over tokens, which the paper does not say; so do its implementations in TRL.
KINDS = {"sigmoid": Kind(sigmoid, per_token=False), "ipo": Kind(ipo, per_token=True)}


@dataclass
class PreferenceLoss(PairMean):
    """DPO's loss (a `TokenLoss`), with a term for the likelihood of the chosen answer.

    Reads the field ``reference_logprobs``; without it the reference is uniform (reference-free).
    The likelihood term is -log p of the chosen answer, a mean over its tokens: Pang et al. 2024,
    arXiv:2404.19733, eq. 1.

    Args:
        config: Coefficients.
        sequence_sums: See `SequenceSums`.
    """

    config: PreferenceLossConfig
    sequence_sums: SequenceSums
    temperature: float = 1.0
    needs_entropy: bool = False
    reads_trained_only = True
    metric_names: tuple[str, ...] = (
        "accuracy",
        "margin",
        "chosen_reward",
        "rejected_reward",
        "chosen_nll",
    )

    def __call__(
        self, logprobs: torch.Tensor, entropy: torch.Tensor | None, batch: MicroBatch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Sums over the pairs; a pair without a trained token is not counted."""
        kind, mask = KINDS[self.config.kind], batch.loss_mask
        # Differences first: they are small where the sums of log-probabilities are not.
        reference = batch.fields.get(REFERENCE, 0.0)
        log_ratios = self.sequence_sums((logprobs - reference) * mask, batch)
        tokens = self.sequence_sums(mask, batch)
        counted = chosen_and_rejected((tokens > 0) / batch.copies, batch)[0]
        length = tokens.clamp(min=1)
        nll = chosen_and_rejected(-self.sequence_sums(logprobs * mask, batch) / length, batch)[0]
        if kind.per_token:
            log_ratios = log_ratios / length
        chosen, rejected = chosen_and_rejected(log_ratios, batch)
        loss = kind.loss(chosen - rejected, self.config)
        if self.config.nll_coef:
            loss = loss + self.config.nll_coef * nll
        metrics = {
            "accuracy": (chosen > rejected).to(loss.dtype),
            "margin": self.config.beta * (chosen - rejected),
            "chosen_reward": self.config.beta * chosen,
            "rejected_reward": self.config.beta * rejected,
            "chosen_nll": nll,
        }
        return (loss * counted).sum(), {name: (v * counted).sum() for name, v in metrics.items()}
