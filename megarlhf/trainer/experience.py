"""From scored samples to the sequences that the actor is trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from megarlhf.algo.advantages import normalized_over_batch
from megarlhf.algo.aggregation import loss_weight
from megarlhf.algo.credit import Scores
from megarlhf.algo.kl import estimate_kl
from megarlhf.algo.kl_coefficient import KLCoefficient
from megarlhf.algo.registry import Algorithm
from megarlhf.algo.reward_shaping import RunningMoments, shaped_rewards
from megarlhf.config.schema import AlgorithmConfig
from megarlhf.data.dealing import filled
from megarlhf.data.records import Sample
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.trainer.credit_rows import Rows


def as_sequences(groups: Sequence[Sequence[Sample]], multiple: int = 1) -> list[TokenSequence]:
    """One sequence a sample: the very ids that were sampled. An agent's sample may be several.

    Args:
        groups: For each prompt its samples, as many for each.
        multiple: Where samples have several sequences, untrained copies are added until their number is
            a multiple of this, so that they can be dealt to the ranks.

    Returns:
        Sequences in the order of the samples, group by group, with the field ``rollout_logprobs``,
        0 on the prompt and where an environment's tokens are, which are not trained on.
    """
    samples = [sample for group in groups for sample in group]
    sequences = [_sequence(part) for sample in samples for part in sample.parts]
    if len(sequences) == len(samples):
        return sequences
    more, _ = filled(sequences, None, multiple)
    added = more[len(sequences) :]
    return sequences + [
        TokenSequence(one.token_ids, one.loss_mask, dict(one.fields)) for one in added
    ]


def _sequence(sample: Sample) -> TokenSequence:
    before = [0.0] * len(sample.prompt.token_ids)
    mask = [1] * len(sample.response_ids) if sample.mask is None else sample.mask
    return TokenSequence(
        token_ids=[*sample.prompt.token_ids, *sample.response_ids],
        loss_mask=before + [float(sampled) for sampled in mask],
        fields={"rollout_logprobs": before + sample.rollout_logprobs},
    )


def add_field(
    sequences: Sequence[TokenSequence], name: str, values: Mapping[int, list[float]]
) -> None:
    """Give every sequence a per-token field, by the sequence's index."""
    for index, sequence in enumerate(sequences):
        sequence.fields[name] = values[index]


def needs_old_logprobs(config: AlgorithmConfig) -> bool:
    """Whether the policy's log-probabilities must be computed before it is trained.

    Where a rollout makes a single optimizer step, that step's own forward pass gives them, but too late
    for a KL in the reward.
    """
    return config.epochs * config.updates_per_rollout > 1 or (
        config.kl_in == "reward" and config.kl_coef > 0
    )


class CreditAssignment:
    """Gives the tokens of a rollout their advantages; keeps running statistics of rewards and KL.

    Args:
        algorithm: Whose estimator to use.
        config: The settings, with the algorithm's defaults filled in.
        max_tokens: The longest that a response may be, tokens.

    Attributes:
        kl: The coefficient of the KL penalty.
    """

    def __init__(self, algorithm: Algorithm, config: AlgorithmConfig, max_tokens: int) -> None:
        self._algorithm, self._config, self._max_tokens = algorithm, config, max_tokens
        self.kl = KLCoefficient(config.kl_coef, config.kl_target, config.kl_horizon)
        self._moments = RunningMoments()

    def assign(
        self, groups: Sequence[Sequence[Sample]], sequences: Sequence[TokenSequence]
    ) -> None:
        """Give the sequences ``advantages`` and ``loss_weight``, and ``returns`` with a critic.

        Args:
            groups: The scored samples.
            sequences: Their sequences, with ``old_logprobs`` and ``reference_logprobs`` where the KL is
                in the reward and ``old_values`` where the algorithm has a critic.
        """
        rows = Rows(groups, sequences)
        scores = Scores(
            outcome=self._outcomes(groups, rows.mask),
            per_token=self._token_rewards(rows),
            mask=rows.mask,
            values=rows.field("old_values") if self._algorithm.needs_critic else None,
        )
        credit = self._algorithm.estimate(scores, self._config)
        advantages = normalized_over_batch(
            credit.advantages, rows.mask, self._config.advantage_normalization
        )
        rows.set_field("advantages", advantages)
        if credit.returns is not None:
            rows.set_field("returns", credit.returns)
        trained = rows.mask.sum(1).tolist()
        rows.set_weights([loss_weight(self._config, round(tokens)) for tokens in trained])

    def _outcomes(self, groups: Sequence[Sequence[Sample]], mask: torch.Tensor) -> torch.Tensor:
        rewards = [[sample.reward for sample in group] for group in groups]
        cut = [[sample.finish_reason == "length" for sample in group] for group in groups]
        outcome = torch.tensor(rewards, dtype=torch.float64)
        return shaped_rewards(
            outcome,
            mask.sum(1).view_as(outcome),
            torch.tensor(cut),
            self._max_tokens,
            self._config,
            self._moments,
        )

    def _token_rewards(self, rows: Rows) -> torch.Tensor:
        """-coefficient * KL at each token, where the KL is in the reward."""
        if self._config.kl_in != "reward" or self._config.kl_coef == 0:
            return torch.zeros_like(rows.mask)
        old, reference = rows.field("old_logprobs"), rows.field("reference_logprobs")
        return -self.kl.value * rows.mask * estimate_kl(old, reference, self._config.kl_estimator)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"kl": self.kl.state_dict(), "rewards": self._moments.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.kl.load_state_dict(state["kl"])
        self._moments.load_state_dict(state["rewards"])


def rollout_metrics(groups: Sequence[Sequence[Sample]]) -> dict[str, float]:
    """What a person wants to know about a batch of samples.

    ``reward`` (mean), ``reward_std``, ``response_length`` (mean, sampled tokens), ``truncated``
    (share cut at the limit), ``groups_without_signal`` (share of prompts whose samples all got one
    reward).
    """
    samples = [sample for group in groups for sample in group]
    rewards = torch.tensor([float(sample.reward or 0.0) for sample in samples])
    flat = [len({sample.reward for sample in group}) == 1 for group in groups]
    return {
        "reward": rewards.mean().item(),
        "reward_std": rewards.std(correction=0).item(),
        "response_length": sum(sample.sampled for sample in samples) / len(samples),
        "truncated": sum(sample.finish_reason == "length" for sample in samples) / len(samples),
        "groups_without_signal": sum(flat) / len(groups),
    }


def largest_gap(sequences: Sequence[TokenSequence]) -> dict[str, float]:
    """``logprob_gap_max``: max over trained tokens of |old - rollout log-probability|.

    Empty where the old policy's log-probabilities are not known before training.
    """
    if "old_logprobs" not in sequences[0].fields:
        return {}
    largest = 0.0
    for sequence in sequences:
        fields = (sequence.fields[name] for name in ("old_logprobs", "rollout_logprobs"))
        for old, rollout, trained in zip(*fields, sequence.loss_mask, strict=True):
            largest = max(largest, abs(old - rollout) * trained)
    return {"logprob_gap_max": largest}
