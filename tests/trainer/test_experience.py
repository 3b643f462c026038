import math

import pytest

from megarlhf.algo import registry
from megarlhf.data.records import Prompt, Sample
from megarlhf.trainer.experience import add_field, as_sequences, rollout_metrics

GRPO = registry.find("grpo")


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


def test_a_sequence_is_the_very_ids_with_its_fields_on_the_response():
    first, second = sample([7, 8, 9], [4, 2], 3.0), sample([7, 8, 9], [5, 5, 5, 2], 1.0)
    sequences = as_sequences([[first, second]], GRPO)
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
    sequences = as_sequences(groups, GRPO)
    assert [len(s.token_ids) for s in sequences] == [2] * 4 + [3] * 4 + [4] * 4
    advantages = [s.fields["advantages"][-1] for s in sequences]
    high = 0.5 / math.sqrt(1 / 3)  # deviations 0.5, variance 4 * 0.25 / 3
    spread = math.sqrt(20 / 3)  # deviations -3, -1, 1, 3
    expected = [high, -high, -high, high, 0, 0, 0, 0, *(d / spread for d in (-3, -1, 1, 3))]
    assert advantages == pytest.approx(expected, abs=5e-6)


def test_sequences_share_no_list_with_the_samples():
    group = [sample([1], [2, 3], 0.0), sample([1], [2, 3], 1.0)]
    as_sequences([group], GRPO)[0].fields["rollout_logprobs"][1] = 99.0
    assert group[0].rollout_logprobs == [-0.5, -1.5]


def test_add_field_goes_by_index():
    sequences = as_sequences([[sample([1], [2], 0.0), sample([1], [3], 1.0)]], GRPO)
    add_field(sequences, "old_logprobs", {1: [0.0, -2.0], 0: [0.0, -1.0]})
    assert [s.fields["old_logprobs"] for s in sequences] == [[0.0, -1.0], [0.0, -2.0]]
    with pytest.raises(KeyError):
        add_field(sequences, "reference_logprobs", {0: [0.0, -1.0]})


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
