"""Running moments, penalties, clipping and filtering of rewards."""

import json
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from megarlhf.algo.filtering import groups_with_signal
from megarlhf.algo.registry import filled
from megarlhf.algo.reward_shaping import (
    RunningMoments,
    overlong_penalty,
    shaped_rewards,
    truncated_rewards,
)
from megarlhf.config.schema import AlgorithmConfig

settings = hypothesis_settings(max_examples=60, deadline=None)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


# -- moments --------------------------------------------------------------------------------------


@settings
@given(
    st.lists(
        st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=6), min_size=1, max_size=5
    )
)
def test_moments_of_batches_are_those_of_everything(batches):
    moments = RunningMoments()
    for batch in batches:
        moments.update(double(batch))
    everything = [x for batch in batches for x in batch]
    assert moments.count == len(everything)
    assert moments.mean == pytest.approx(statistics.fmean(everything), rel=1e-12, abs=1e-11)
    if max(everything) > min(everything):
        # centring rounds at 1e-14 of the largest number, the root doubles the digits lost
        assert moments.std == pytest.approx(statistics.pstdev(everything), rel=1e-6, abs=1e-6)


def test_moments_to_the_last_digits_where_nothing_cancels():
    moments = RunningMoments()
    for batch in ([1.0, 2.0], [4.0], [8.0, -16.0, 32.0]):
        moments.update(double(batch))
    values = [1.0, 2.0, 4.0, 8.0, -16.0, 32.0]
    assert moments.mean == pytest.approx(statistics.fmean(values), rel=1e-12)
    assert moments.std == pytest.approx(statistics.pstdev(values), rel=1e-12)


def test_equal_rewards_are_not_divided():
    moments = RunningMoments()
    assert moments.std == 1.0
    moments.update(double([3.0, 3.0]))
    assert (moments.mean, moments.std) == (3.0, 1.0)


def test_moments_go_on_from_a_checkpoint():
    whole, resumed = RunningMoments(), RunningMoments()
    whole.update(double([1.0, 5.0]))
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for moments in (whole, resumed):
        moments.update(double([0.1, 0.7]))
    assert whole.state_dict() == resumed.state_dict()


# -- penalties ------------------------------------------------------------------------------------


def test_the_overlong_penalty_by_hand():
    """DAPO's numbers: 20480 tokens at most, the last 4096 are penalized."""
    lengths = double([[1.0, 16384.0, 17408.0, 18432.0, 20480.0]])
    found = overlong_penalty(lengths, 20480, 0.2, 1.0)
    assert found.tolist() == [pytest.approx([0.0, 0.0, -0.25, -0.5, -1.0], abs=1e-12)]


@settings
@given(st.integers(1, 1000), st.integers(1, 1000), st.floats(0.01, 1), st.floats(0, 5))
def test_the_overlong_penalty_is_its_cases(length, most, buffer, penalty):
    length = min(length, most)
    found = overlong_penalty(double([[float(length)]]), most, buffer, penalty).item()
    expected_length = most - buffer * most
    expected = 0.0
    if length > expected_length:
        expected = -penalty * (length - expected_length) / (buffer * most)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-11)


def test_truncated_rewards_by_hand():
    rewards, cut = double([[2.0, -2.0, 3.0]]), torch.tensor([[True, True, False]])
    assert truncated_rewards(rewards, cut, 0.5).tolist() == [[1.0, -1.0, 3.0]]
    assert truncated_rewards(rewards, cut, 0.0).tolist() == [[0.0, 0.0, 3.0]]
    assert truncated_rewards(rewards, cut, -0.5).tolist() == [[-0.5, -0.5, 3.0]]


# -- all of it ------------------------------------------------------------------------------------

LENGTHS, CUT = double([[2.0, 10.0]]), torch.tensor([[False, True]])


def shaped(rewards, moments=None, **changes):
    config = filled(AlgorithmConfig(**changes))
    return shaped_rewards(
        double([rewards]), LENGTHS, CUT, 10, config, moments or RunningMoments()
    ).tolist()[0]


def test_nothing_happens_by_default():
    assert shaped([1.5, -70.0]) == [1.5, -70.0]


def test_the_steps_and_their_order():
    assert shaped([1.0, 5.0], normalize_rewards=True) == [-1.0, 1.0]
    assert shaped([1.0, 5.0], length_penalty=0.5) == pytest.approx([0.9, 4.5])
    assert shaped([1.0, 5.0], overlong_buffer=0.5, overlong_penalty=3.0) == [1.0, 2.0]
    assert shaped([1.0, 5.0], truncation_coef=0.5) == [1.0, 2.5]
    assert shaped([1.0, -5.0], reward_clip=2.0) == [1.0, -2.0]
    everything = {
        "normalize_rewards": True,
        "overlong_buffer": 0.5,
        "overlong_penalty": 0.25,
        "length_penalty": 0.1,
        "truncation_coef": 0.5,
        "reward_clip": 0.3,
    }
    # normalized -1, 1; overlong 0, -0.25; length -0.02, -0.1; half of 0.65; clipped
    assert shaped([1.0, 5.0], **everything) == pytest.approx([-0.3, 0.3])
    assert shaped([1.0, 5.0], **{**everything, "reward_clip": 9.0}) == pytest.approx([-1.02, 0.325])


def test_moments_see_rewards_before_penalties():
    moments = RunningMoments()
    shaped([1.0, 5.0], moments, normalize_rewards=True, length_penalty=9.0)
    assert (moments.count, moments.mean, moments.std) == (2, 3.0, 2.0)
    assert shaped([1.0, 5.0], moments, normalize_rewards=True) == [-1.0, 1.0]
    assert moments.count == 4


def test_groups_with_signal():
    rewards = [[0.0, 0.0], [0.0, 1.0], [0.1 + 0.2, 0.3], [1.0, 1.0], [-5.0, -5.0], [2.0]]
    assert groups_with_signal(rewards) == [False, True, True, False, False, False]
    assert groups_with_signal([]) == []
