"""A policy's loss and, of other rows in the same batch, the loss of pretraining (ptx).

Ouyang et al. 2022, "Training language models to follow instructions with human feedback",
arXiv:2203.02155, eq. 2: objective + ptx_coef * mean log p of the rows' tokens. Here the mean is over all
trained tokens of the rows in the global batch, and so is what `PretrainingMix` adds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from megarlhf.algo.loss import Divisors
from megarlhf.algo.policy_loss import PolicyLoss
from megarlhf.data.records import MicroBatch
from megarlhf.data.records import Sequence as TokenSequence

PTX = "ptx"  # field: 1 on tokens that are learned as in pretraining
ROW = "ptx_row"  # field: 1 on all tokens of rows that are


def mixed(rollout: Sequence[TokenSequence], rows: Sequence[TokenSequence]) -> list[TokenSequence]:
    """A rollout's sequences, then the rows, all with the same fields.

    A row's tokens are none of the policy's: its mask is 0 and so are the policy's fields.
    """

    def marked(sequence: TokenSequence) -> TokenSequence:
        none = [0.0] * len(sequence.token_ids)
        return replace(sequence, fields={**sequence.fields, PTX: none, ROW: none})

    def as_row(row: TokenSequence) -> TokenSequence:
        none = [0.0] * len(row.token_ids)
        own = {PTX: row.loss_mask, ROW: [1.0] * len(none)}
        return TokenSequence(row.token_ids, none, {**dict.fromkeys(names, none), **own})

    names = rollout[0].fields
    return [*map(marked, rollout), *map(as_row, rows)]


@dataclass
class PretrainingMix:
    """The policy's loss plus ``coef`` times the mean of -log p over the rows' tokens (a `TokenLoss`).

    For batches that `mixed` made. The rows' log-probabilities are those of the model itself, at
    temperature 1, whatever the sampler's is.

    Args:
        policy: The policy's loss.
        coef: Weight of the rows' loss.
        weight: What a row's token counts in the sum; `of` finds it.
    """

    policy: PolicyLoss
    coef: float
    weight: float = 0.0

    from_logits = None
    reads_trained_only = False

    @classmethod
    def of(
        cls, policy: PolicyLoss, coef: float, sequences: Sequence[TokenSequence]
    ) -> "PretrainingMix":
        """The loss of a global batch.

        The engine divides the sum by the policy's divisor; so the rows' tokens are weighted with that
        over their own number.
        """
        return cls(policy, coef, coef * policy.divisors(sequences).loss / _tokens(sequences))

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The policy's, and ``ptx_loss``."""
        return (*self.policy.metric_names, "ptx_loss")

    @property
    def needs_entropy(self) -> bool:
        """As the policy says."""
        return self.policy.needs_entropy

    def temperature_at(self, batch: MicroBatch) -> torch.Tensor:
        """fp64 [T]: 1 in the rows, elsewhere the sampler's."""
        own = torch.full_like(batch.fields[ROW], self.policy.temperature, dtype=torch.float64)
        return own.masked_fill(batch.fields[ROW] > 0, 1.0)

    def divisors(self, sequences: Sequence[TokenSequence]) -> Divisors:
        """The policy's; ``ptx_loss`` has its own."""
        own = self.policy.divisors(sequences)
        return own._replace(by_name={**own.by_name, "ptx_loss": _tokens(sequences)})

    def __call__(
        self, logprobs: torch.Tensor, entropy: torch.Tensor | None, batch: MicroBatch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Both losses summed, the rows' weighted."""
        row = batch.fields[ROW] > 0
        # A row's log p may be so low that exp(-log p), which no mask would make 0 again, is infinite.
        others = None if entropy is None else entropy.masked_fill(row, 0.0)
        total, metrics = self.policy(logprobs.masked_fill(row, 0.0), others, batch)
        nll = -(logprobs * batch.fields[PTX]).sum()
        return total + self.weight * nll, {**metrics, "ptx_loss": nll}


def _tokens(sequences: Sequence[TokenSequence]) -> float:
    return sum(sum(sequence.fields[PTX]) for sequence in sequences)
