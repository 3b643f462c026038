"""From scored samples to the sequences that the actor is trained on."""

from collections.abc import Mapping, Sequence

import torch

from megarlhf.algo.registry import Algorithm
from megarlhf.data.records import Sample
from megarlhf.data.records import Sequence as TokenSequence


def as_sequences(groups: Sequence[Sequence[Sample]], algorithm: Algorithm) -> list[TokenSequence]:
    """One sequence a sample: the very ids that were sampled, with advantages and loss weights.

    Args:
        groups: For each prompt its scored samples, as many for each.
        algorithm: Gives the advantages and the weight of a response's tokens.

    Returns:
        Sequences in the order of the samples, group by group. Fields: ``advantages``,
        ``loss_weight`` and ``rollout_logprobs``, 0 on the prompt.
    """
    rewards = torch.tensor([[sample.reward for sample in group] for group in groups])
    advantages = algorithm.advantages(rewards).tolist()
    return [
        _sequence(sample, advantage, algorithm)
        for group, row in zip(groups, advantages, strict=True)
        for sample, advantage in zip(group, row, strict=True)
    ]


def _sequence(sample: Sample, advantage: float, algorithm: Algorithm) -> TokenSequence:
    before = [0.0] * len(sample.prompt.token_ids)
    length = len(sample.response_ids)
    return TokenSequence(
        token_ids=[*sample.prompt.token_ids, *sample.response_ids],
        loss_mask=before + [1.0] * length,
        fields={
            "advantages": before + [advantage] * length,
            "loss_weight": before + [algorithm.token_weight(length)] * length,
            "rollout_logprobs": before + sample.rollout_logprobs,
        },
    )


def add_field(
    sequences: Sequence[TokenSequence], name: str, values: Mapping[int, list[float]]
) -> None:
    """Give every sequence a per-token field, by the sequence's index."""
    for index, sequence in enumerate(sequences):
        sequence.fields[name] = values[index]


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
