"""From scored samples to trained sequences, and the state that is kept between rollouts."""

import json
import math

import pytest
import torch

from megarlhf.algo import registry
from megarlhf.algo.advantages import group_normalized
from megarlhf.algo.credit import Credit
from megarlhf.config.schema import AlgorithmConfig
from megarlhf.data.records import Prompt, Sample
from megarlhf.trainer.experience import (
    CreditAssignment,
    add_field,
    as_sequences,
    largest_gap,
    needs_old_logprobs,
    rollout_metrics,
)


def sample(prompt_ids, response_ids, reward, *, finish_reason="stop"):
    """Texts say nothing about the ids: whoever tokenizes them again gets something else."""
    return Sample(
        prompt=Prompt(index=0, text="a text of other tokens", token_ids=tuple(prompt_ids)),
        response_ids=list(response_ids),
        rollout_logprobs=[-0.5 - position for position in range(len(response_ids))],
        policy_version=0,
        finish_reason=finish_reason,
        text="another text",
        reward=reward,
    )


def assigner(name="grpo", **changes):
    config = registry.filled(AlgorithmConfig(name=name, **changes))
    return CreditAssignment(registry.find(name), config, max_tokens=4)


def assigned(groups, name="grpo", **changes):
    sequences = as_sequences(groups)
    assigner(name, **changes).assign(groups, sequences)
    return sequences


def test_a_sequence_is_the_very_ids_with_its_fields_on_the_response():
    first, second = sample([7, 8, 9], [4, 2], 3.0), sample([7, 8, 9], [5, 5, 5, 2], 1.0)
    sequences = assigned([[first, second]])
    assert [s.token_ids for s in sequences] == [[7, 8, 9, 4, 2], [7, 8, 9, 5, 5, 5, 2]]
    assert [s.loss_mask for s in sequences] == [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1]]
    # rewards 3 and 1: mean 2, standard deviation sqrt(2) (n - 1), so +-1/sqrt(2)
    half = 1 / math.sqrt(2)
    for sequence, length, advantage in zip(sequences, (2, 4), (half, -half), strict=True):
        fields = sequence.fields
        assert set(fields) == {"advantages", "loss_weight", "rollout_logprobs"}
        assert fields["advantages"] == pytest.approx([0, 0, 0] + [advantage] * length, abs=2e-6)
        assert fields["loss_weight"] == [0, 0, 0] + [1 / length] * length
        assert fields["rollout_logprobs"] == [0, 0, 0, -0.5, -1.5, -2.5, -3.5][: 3 + length]


def test_advantages_are_relative_to_the_own_group_and_in_its_order():
    groups = [
        [sample([1], [2], reward) for reward in (1.0, 0.0, 0.0, 1.0)],
        [sample([1, 1], [2], reward) for reward in (5.0, 5.0, 5.0, 5.0)],
        [sample([1, 1, 1], [2], reward) for reward in (0.0, 2.0, 4.0, 6.0)],
    ]
    sequences = assigned(groups)
    assert [len(s.token_ids) for s in sequences] == [2] * 4 + [3] * 4 + [4] * 4
    advantages = [s.fields["advantages"][-1] for s in sequences]
    high = 0.5 / math.sqrt(1 / 3)  # deviations 0.5, variance 4 * 0.25 / 3
    spread = math.sqrt(20 / 3)  # deviations -3, -1, 1, 3
    expected = [high, -high, -high, high, 0, 0, 0, 0, *(d / spread for d in (-3, -1, 1, 3))]
    assert advantages == pytest.approx(expected, abs=5e-6)


def test_grpo_gives_the_float32_numbers_of_its_formula():
    rewards = torch.rand(6, 8, generator=torch.Generator().manual_seed(1))
    groups = [[sample([1, 1], [2] * (1 + i % 3), r) for i, r in enumerate(row)]
              for row in rewards.tolist()]  # fmt: skip
    expected = group_normalized(rewards).flatten().tolist()
    for sequence, advantage in zip(assigned(groups), expected, strict=True):
        response = len(sequence.token_ids) - 2
        assert sequence.fields["advantages"] == [0.0, 0.0] + [advantage] * response


def test_sequences_share_no_list_with_the_samples():
    group = [sample([1], [2, 3], 0.0), sample([1], [2, 3], 1.0)]
    as_sequences([group])[0].fields["rollout_logprobs"][1] = 99.0
    assert group[0].rollout_logprobs == [-0.5, -1.5]


def test_add_field_goes_by_index():
    sequences = as_sequences([[sample([1], [2], 0.0), sample([1], [3], 1.0)]])
    add_field(sequences, "old_logprobs", {1: [0.0, -2.0], 0: [0.0, -1.0]})
    assert [s.fields["old_logprobs"] for s in sequences] == [[0.0, -1.0], [0.0, -2.0]]
    with pytest.raises(KeyError):
        add_field(sequences, "reference_logprobs", {0: [0.0, -1.0]})


# -- credit ---------------------------------------------------------------------------------------


def with_logprobs(groups, old, reference):
    """Sequences of one-token prompts with log-probabilities at the responses."""
    sequences = as_sequences(groups)
    add_field(sequences, "old_logprobs", {i: [0.0, *row] for i, row in enumerate(old)})
    add_field(sequences, "reference_logprobs", {i: [0.0, *row] for i, row in enumerate(reference)})
    return sequences


def test_kl_in_the_reward_is_paid_at_each_token():
    groups = [[sample([1], [2, 3], 5.0), sample([1], [2], 1.0)]]
    sequences = with_logprobs(groups, [[-1.0, -2.0], [-3.0]], [[-1.5, -2.25], [-2.0]])
    assigner("rloo", kl_coef=0.5).assign(groups, sequences)
    # leave one out: 4 and -4; KL 0.5, 0.25 and -1, half of it paid
    found = [s.fields["advantages"] for s in sequences]
    assert found == [
        pytest.approx([0.0, 4 - 0.375, 4 - 0.125], abs=1e-12),
        pytest.approx([0.0, -4 + 0.5], abs=1e-12),
    ]
    assert [s.fields["loss_weight"] for s in sequences] == [[0.0, 1.0, 1.0], [0.0, 1.0]]


def test_reinforce_plus_plus_is_normalized_over_all_tokens():
    groups = [[sample([1], [2, 3], 2.0)], [sample([1], [4], 8.0)]]
    sequences = assigned(groups, "reinforce_plus_plus", kl_coef=0.0)
    deviation = math.sqrt(8)  # 2, 2, 8: mean 4, squares 4, 4, 16
    found = [s.fields["advantages"] for s in sequences]
    assert found == [
        pytest.approx([0.0, -2 / deviation, -2 / deviation], abs=1e-12),
        pytest.approx([0.0, 4 / deviation], abs=1e-12),
    ]


def test_a_critic_gets_returns():
    groups = [[sample([1], [2, 3], 2.0)]]
    sequences = as_sequences(groups)
    add_field(sequences, "old_values", {0: [9.0, 0.5, 1.0]})
    assigner("ppo", kl_coef=0.0, advantage_normalization="none").assign(groups, sequences)
    fields = sequences[0].fields
    assert fields["advantages"] == [0.0, 1.5, 1.0]
    assert fields["returns"] == [0.0, 2.0, 2.0]


def test_tokens_of_an_environment_take_no_part():
    groups = [[sample([1], [2, 3, 4], 2.0), sample([1], [2], 0.0)]]
    sequences = as_sequences(groups)
    sequences[0].loss_mask[2] = 0.0
    assigner("dr_grpo", aggregation="sequence_mean").assign(groups, sequences)
    assert sequences[0].fields["advantages"] == [0.0, 1.0, 0.0, 1.0]
    assert sequences[0].fields["loss_weight"] == [0.0, 0.5, 0.0, 0.5]


def test_truncated_responses_and_long_ones_are_penalized():
    groups = [
        [sample([1], [2] * 4, 1.0, finish_reason="length"), sample([1], [2], 1.0)],
    ]
    sequences = assigned(groups, "dr_grpo", truncation_coef=-1.0)
    assert [s.fields["advantages"][1] for s in sequences] == [-1.0, 1.0]
    sequences = assigned(groups, "dr_grpo", overlong_buffer=0.5, overlong_penalty=0.5)
    assert [s.fields["advantages"][1] for s in sequences] == [-0.25, 0.25]
    assert [s.reward for s in groups[0]] == [1.0, 1.0]  # what was scored stays


def test_a_users_estimator_sees_what_ours_see():
    seen = []

    def estimate(scores, config):
        seen.append(scores)
        return Credit(scores.mask * 3.0)

    row = registry.Algorithm("own", estimate)
    groups = [[sample([1], [2, 3], 5.0), sample([1], [2], 1.0)]]
    sequences = as_sequences(groups)
    CreditAssignment(row, registry.filled(AlgorithmConfig()), 4).assign(groups, sequences)
    assert sequences[0].fields["advantages"] == [0.0, 3.0, 3.0]
    scores = seen[0]
    assert scores.outcome.tolist() == [[5.0, 1.0]]
    assert scores.mask.tolist() == [[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]]
    assert (scores.per_token == 0).all()
    assert scores.values is None
    assert {scores.outcome.dtype, scores.mask.dtype} == {torch.float64}


def test_what_is_learned_goes_through_a_checkpoint():
    groups = [[sample([1], [2, 3], 5.0), sample([1], [2], 1.0)]]
    changes = {"normalize_rewards": True, "kl_target": 0.1}
    first, second = assigner("rloo", **changes), assigner("rloo", **changes)

    def step(credit):
        sequences = with_logprobs(groups, [[-1.0, -2.0], [-3.0]], [[-1.5, -2.25], [-2.0]])
        credit.assign(groups, sequences)
        credit.kl.update(0.3, 1000)
        return [s.fields["advantages"] for s in sequences]

    step(first)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.kl.value == first.kl.value == pytest.approx(0.01 * 1.02)
    assert step(first) == step(second)


def test_when_the_old_policy_must_be_asked():
    def needs(name, **changes):
        return needs_old_logprobs(registry.filled(AlgorithmConfig(name=name, **changes)))

    assert not needs("grpo")
    assert needs("grpo", updates_per_rollout=2)
    assert needs("grpo", epochs=2)
    assert needs("rloo")
    assert not needs("rloo", kl_coef=0.0)
    assert not needs("rloo", kl_in="loss")


def test_the_largest_gap_between_sampler_and_trainer():
    groups = [[sample([1], [2, 3], 0.0), sample([1], [2], 1.0)]]
    sequences = as_sequences(groups)
    assert largest_gap(sequences) == {}
    add_field(sequences, "old_logprobs", {0: [50.0, -0.5, -1.25], 1: [50.0, -1.0]})
    assert largest_gap(sequences) == {"logprob_gap_max": 0.5}


def test_rollout_metrics():
    groups = [
        [sample([1], [2], 1.0), sample([1], [2, 3, 4], 1.0, finish_reason="length")],
        [sample([1], [2, 3], 0.0), sample([1], [2, 3], 4.0)],
    ]
    assert rollout_metrics(groups) == {
        "reward": 1.5,
        "reward_std": 1.5,  # of all rewards: deviations -0.5, -0.5, -1.5, 2.5
        "response_length": 2.0,
        "truncated": 0.25,
        "groups_without_signal": 0.5,
    }
