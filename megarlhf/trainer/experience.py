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
from megarlhf.data.records import Sample
from megarlhf.data.records import Sequence as TokenSequence


def as_sequences(groups: Sequence[Sequence[Sample]]) -> list[TokenSequence]:
    """One sequence a sample: the very ids that were sampled.

    Args:
        groups: For each prompt its samples, as many for each.

    Returns:
        Sequences in the order of the samples, group by group, with the field ``rollout_logprobs``,
        0 on the prompt.
    """
    return [_sequence(sample) for group in groups for sample in group]


def _sequence(sample: Sample) -> TokenSequence:
    before = [0.0] * len(sample.prompt.token_ids)
    return TokenSequence(
        token_ids=[*sample.prompt.token_ids, *sample.response_ids],
        loss_mask=before + [1.0] * len(sample.response_ids),
        fields={"rollout_logprobs": before + sample.rollout_logprobs},
    )


def add_field(
    sequences: Sequence[TokenSequence], name: str, values: Mapping[int, list[float]]
) -> None:
    """Give every sequence a per-token field, by the sequence's index."""
    for index, sequence in enumerate(sequences):
        sequence.fields[name] = values[index]


def needs_old_logprobs(config: AlgorithmConfig) -> bool:
    """Whether the policy's log-probabilities are wanted before it is trained.

    A rollout's single optimizer step knows them from its own forward pass; a KL in the reward comes
    before it.
    """
    return config.epochs * config.updates_per_rollout > 1 or (
        config.kl_in == "reward" and config.kl_coef > 0
    )


class CreditAssignment:
    """Gives the tokens of a rollout their advantages; holds what is learned about rewards and KL.

    Args:
        algorithm: Its estimator.
        config: Settings, with the algorithm's defaults filled in.
        max_tokens: Most tokens of a response.

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
            sequences: Theirs, with ``old_logprobs`` and ``reference_logprobs`` where the KL is in
                the reward and ``old_values`` where the algorithm has a critic.
        """
        mask = _padded([sequence.loss_mask for sequence in sequences])
        scores = Scores(
            outcome=self._outcomes(groups, mask),
            per_token=self._token_rewards(sequences, mask),
            mask=mask,
            values=_field(sequences, "old_values") if self._algorithm.needs_critic else None,
        )
        credit = self._algorithm.estimate(scores, self._config)
        advantages = normalized_over_batch(
            credit.advantages, mask, self._config.advantage_normalization
        )
        _set_field(sequences, "advantages", advantages)
        if credit.returns is not None:
            _set_field(sequences, "returns", credit.returns)
        for sequence in sequences:
            weight = loss_weight(self._config, round(sum(sequence.loss_mask)))
            sequence.fields["loss_weight"] = [weight * trained for trained in sequence.loss_mask]

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

    def _token_rewards(
        self, sequences: Sequence[TokenSequence], mask: torch.Tensor
    ) -> torch.Tensor:
        """-coefficient * KL at each token, where the KL is in the reward."""
        if self._config.kl_in != "reward" or self._config.kl_coef == 0:
            return torch.zeros_like(mask)
        old, reference = (
            _field(sequences, name) for name in ("old_logprobs", "reference_logprobs")
        )
        return -self.kl.value * mask * estimate_kl(old, reference, self._config.kl_estimator)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"kl": self.kl.state_dict(), "rewards": self._moments.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.kl.load_state_dict(state["kl"])
        self._moments.load_state_dict(state["rewards"])


def _padded(rows: Sequence[list[float]]) -> torch.Tensor:
    """float64 [B, L], 0 beyond each row's end."""
    tensors = [torch.tensor(row, dtype=torch.float64) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)


def _field(sequences: Sequence[TokenSequence], name: str) -> torch.Tensor:
    return _padded([sequence.fields[name] for sequence in sequences])


def _set_field(sequences: Sequence[TokenSequence], name: str, values: torch.Tensor) -> None:
    for sequence, row in zip(sequences, values.tolist(), strict=True):
        sequence.fields[name] = row[: len(sequence.token_ids)]


def rollout_metrics(groups: Sequence[Sequence[Sample]]) -> dict[str, float]:
    """What a person wants to know about a batch of samples.

    ``reward`` (mean), ``reward_std``, ``response_length`` (mean, tokens), ``truncated`` (share cut
    at the limit), ``groups_without_signal`` (share of prompts whose samples all got one reward).
    """
    samples = [sample for group in groups for sample in group]
    rewards = torch.tensor([float(sample.reward or 0.0) for sample in samples])
    flat = [len({sample.reward for sample in group}) == 1 for group in groups]
    return {
        "reward": rewards.mean().item(),
        "reward_std": rewards.std(correction=0).item(),
        "response_length": sum(len(sample.response_ids) for sample in samples) / len(samples),
        "truncated": sum(sample.finish_reason == "length" for sample in samples) / len(samples),
        "groups_without_signal": sum(flat) / len(groups),
    }


def largest_gap(sequences: Sequence[TokenSequence]) -> dict[str, float]:
    """``logprob_gap_max``: max over trained tokens of |old - rollout log-probability|.

    Empty where the old policy's log-probabilities are not known before training.
    """
    if "old_logprobs" not in sequences[0].fields:
        return {}
    apart = _field(sequences, "old_logprobs") - _field(sequences, "rollout_logprobs")
    mask = _padded([sequence.loss_mask for sequence in sequences])
    return {"logprob_gap_max": (apart.abs() * mask).max().item()}
