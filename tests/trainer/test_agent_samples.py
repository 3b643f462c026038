"""Samples with an environment's tokens in them, and samples of several sequences."""

import random
from dataclasses import replace

import pytest
import torch

from megarlhf.algo.policy_loss import PolicyLoss
from megarlhf.algo.registry import ALGORITHMS, filled, find
from megarlhf.algo.value_loss import ValueLoss
from megarlhf.config.schema import AlgorithmConfig, ParallelConfig, RLConfig
from megarlhf.data.packing import collate
from megarlhf.data.records import Prompt, Sample
from megarlhf.parallel.context import sequence_sums
from megarlhf.trainer.experience import (
    CreditAssignment,
    add_field,
    as_sequences,
    largest_gap,
    rollout_metrics,
)
from megarlhf.trainer.staleness import staleness
from megarlhf.trainer.updates import sequence_multiple

MASKS = ([1, 1, 0, 0, 1], [1, 0, 1], [1, 0, 0, 1, 1, 0, 1], [1, 1])
FIELDS = ("old_logprobs", "reference_logprobs", "old_values")


def sample(mask, reward=0.0, prompt=(7, 8), **changes):
    logprobs = [-0.5 - position if sampled else 0.0 for position, sampled in enumerate(mask)]
    ids = [10 + position for position in range(len(mask))]
    one = Sample(Prompt(0, "", tuple(prompt)), ids, logprobs, 0, "stop", "", reward, mask=mask)
    return replace(one, **changes)


def groups():
    first, second, third, fourth = (
        sample(mask, reward) for mask, reward in zip(MASKS, (1.0, 0.0, 0.5, 2.0), strict=True)
    )
    return [[first, second], [third, fourth]]


def test_only_what_was_sampled_is_trained_on():
    sequences = as_sequences(groups())
    assert [s.token_ids for s in sequences[:2]] == [[7, 8, 10, 11, 12, 13, 14], [7, 8, 10, 11, 12]]
    assert [s.loss_mask for s in sequences] == [[0, 0, *mask] for mask in MASKS]
    assert sequences[1].fields["rollout_logprobs"] == [0, 0, -0.5, 0, -2.5]
    metrics = rollout_metrics(groups())
    assert metrics["response_length"] == (3 + 2 + 4 + 2) / 4
    assert metrics["truncated"] == 0


def learned(name, noise, **changes):
    """Loss, gradient and metrics of a rollout whose environment's tokens have fields as ``noise``."""
    config = filled(AlgorithmConfig(name=name, kl_coef=0.1, **changes))
    sampled, generator = groups(), random.Random(1)
    sequences = as_sequences(sampled)
    for field in FIELDS:
        values = {
            i: [
                drawn if trained else noise
                for drawn, trained in zip(
                    [-abs(generator.gauss(0, 1)) for _ in s.token_ids], s.loss_mask, strict=True
                )
            ]
            for i, s in enumerate(sequences)
        }
        add_field(sequences, field, values)
    for s in sequences:
        s.fields["rollout_logprobs"] = [
            p if trained else noise
            for p, trained in zip(s.fields["rollout_logprobs"], s.loss_mask, strict=True)
        ]
    CreditAssignment(find(name), config, 8).assign(sampled, sequences)
    batch = collate(sequences, range(len(sequences)))
    logprobs = -torch.rand(len(batch.loss_mask), generator=torch.Generator().manual_seed(2))
    logprobs = torch.where(batch.loss_mask > 0, logprobs, torch.tensor(noise)).requires_grad_()
    total, metrics = PolicyLoss(find(name), config, 1.0, 8, sequence_sums)(logprobs, None, batch)
    total.backward()
    found = [
        total,
        logprobs.grad,
        *metrics.values(),
        torch.tensor(list(largest_gap(sequences).values())),
    ]
    if find(name).needs_critic:
        found.append(ValueLoss(config, 8)(logprobs.detach(), None, batch)[0])
    assert (logprobs.grad[batch.loss_mask == 0] == 0).all()
    return found


@pytest.mark.parametrize("correction", ["none", "tis", "icepop", "sequence_mask"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_the_environment_said_changes_nothing(name, correction):
    """To the bit, whatever the log-probabilities and values at its tokens."""
    expected = learned(name, -1.0, correction=correction)
    for noise in (0.0, -40.0):
        found = learned(name, noise, correction=correction)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def fields_of(sequences):
    """What of the trained tokens is known, in their order."""
    names = sorted(sequences[0].fields)
    return [
        [s.fields[name][t] for name in names]
        for s in sequences
        for t, trained in enumerate(s.loss_mask)
        if trained
    ]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_several_sequences_of_a_sample_are_credited_as_one(name):
    """As if they stood in one sequence: the same advantages and weights at the same tokens."""
    config = filled(AlgorithmConfig(name=name, gamma=0.9))

    def credited(sampled, multiple=1):
        sequences, number = as_sequences(sampled, multiple), 0
        for s in sequences:
            values = []
            for trained in s.loss_mask:
                number += trained > 0
                values.append(-number / 7 if trained else 0.0)
            for field in FIELDS:
                s.fields[field] = list(values)
        CreditAssignment(find(name), config, 8).assign(sampled, sequences)
        return sequences

    whole = [[sample([1, 1, 0, 1], 1.0), sample([1], 0.0)]]
    first, second = sample([1, 1]), sample([1], 1.0)
    for s, part in ((first, slice(0, 2)), (second, slice(3, 4))):
        s.rollout_logprobs = whole[0][0].rollout_logprobs[part]
    parted = [[replace(second, earlier=[first]), sample([1], 0.0)]]
    expected, found = credited(whole), credited(parted)
    assert [len(s.token_ids) for s in found] == [4, 3, 3]
    assert fields_of(found) == fields_of(expected)
    assert rollout_metrics(parted) == rollout_metrics(whole)

    more = credited(parted, multiple=4)  # to be dealt to four ranks
    assert fields_of(more) == fields_of(expected)
    assert [sum(s.loss_mask) for s in more] == [2, 1, 1, 0]
    assert more[3].fields.keys() == more[0].fields.keys()
    assert more[3].fields is not more[1].fields
    assert sum(more[3].fields["loss_weight"]) == 0


def test_only_sampled_tokens_are_stale():
    """Weights of version 5 learn from tokens of versions 5, 3 and 1."""
    first = sample([1], version_spans=[(1, 1)])
    last = sample([1, 1, 0, 0, 0, 1], version_spans=[(5, 2), (3, 6)], earlier=[first])
    assert staleness([[last]], 5) == {"staleness_mean": (4 + 0 + 0 + 2) / 4, "staleness_max": 4.0}


def test_how_many_sequences_can_be_dealt():
    config = RLConfig()
    parallel = ParallelConfig(tensor=2, pipeline=2, virtual_pipeline=2)
    config = replace(
        config,
        model=replace(config.model, parallel=parallel),
        cluster=replace(config.cluster, actor_ranks=8, critic_ranks=3),
        algorithm=replace(config.algorithm, updates_per_rollout=5),
    )
    assert sequence_multiple(config, has_critic=False) == 2 * 2 * 5
    assert sequence_multiple(config, has_critic=True) == 4 * 3 * 5
