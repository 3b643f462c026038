"""Estimators of advantages against loops over floats, and against cases by hand."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from megarlhf.algo import advantages
from megarlhf.algo.advantages import group_centred, group_normalized, leave_one_out
from megarlhf.algo.credit import Scores, token_rewards
from megarlhf.algo.registry import filled, find
from megarlhf.config.schema import AlgorithmConfig
from tests.algo import loops

settings = hypothesis_settings(max_examples=60, deadline=None)

BASELINES = {
    "grpo": "normalized",
    "dr_grpo": "centred",
    "rloo": "leave_one_out",
    "reinforce_plus_plus_baseline": "centred",
}


def double(values):
    return torch.tensor(values, dtype=torch.float64)


@st.composite
def rollouts(draw):
    """(rewards [G][n], then for each of the G n sequences a list of per-token rewards, mask, values)."""
    groups, samples = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    number = st.floats(-10, 10, width=32)
    length = draw(st.integers(1, 6))

    def table(element):
        row = st.lists(element, min_size=length, max_size=length)
        return draw(st.lists(row, min_size=groups * samples, max_size=groups * samples))

    row = st.lists(number, min_size=samples, max_size=samples)
    outcome = draw(st.lists(row, min_size=groups, max_size=groups))
    masks = table(st.sampled_from([0.0, 1.0, 1.0]))
    for mask in masks:
        mask[draw(st.integers(0, length - 1))] = 1.0
    return outcome, table(number), masks, table(number)


def scores_of(rollout):
    outcome, per_token, masks, values = (double(part) for part in rollout)
    return Scores(outcome, per_token, masks, values)


def close(found, expected, scale=1.0):
    """To 1e-12 of the largest number that takes part."""
    assert found.tolist() == [pytest.approx(row, rel=1e-12, abs=1e-12 * scale) for row in expected]


# -- estimators -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dr_grpo", "rloo", "reinforce_plus_plus_baseline"])
@settings
@given(rollout=rollouts())
def test_group_estimators_are_the_loop(name, rollout):
    outcome, per_token, masks, _ = rollout
    credit = find(name).estimate(scores_of(rollout), filled(AlgorithmConfig(name=name)))
    flat = [r for group in outcome for r in loops.baseline(BASELINES[name], group)]
    expected = [
        loops.returns(row, reward, mask, 1.0)
        for row, reward, mask in zip(per_token, flat, masks, strict=True)
    ]
    close(credit.advantages, expected, scale=100.0)
    assert credit.returns is None


@settings
@given(rollouts())
def test_grpo_is_the_loop_in_float32(rollout):
    """Its outcomes are float32, the tokens' rewards that are added to them float64."""
    outcome, per_token, masks, _ = rollout
    found = find("grpo").estimate(scores_of(rollout), filled(AlgorithmConfig())).advantages
    flat = group_normalized(torch.tensor(outcome)).flatten().tolist()
    expected = [
        loops.returns(row, reward, mask, 1.0)
        for row, reward, mask in zip(per_token, flat, masks, strict=True)
    ]
    close(found, expected, scale=100.0)


def test_grpo_without_token_rewards_is_float32_to_the_bit():
    outcome = torch.rand(50, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(400, 3, dtype=torch.float64)
    found = advantages.grpo(Scores(outcome.double(), torch.zeros_like(mask), mask), None)
    expected = group_normalized(outcome).double().flatten()
    assert torch.equal(found.advantages, expected[:, None].expand(400, 3))


@settings
@given(rollouts(), st.floats(0, 1))
def test_reinforce_plus_plus_is_the_loop(rollout, gamma):
    outcome, per_token, masks, _ = rollout
    config = filled(AlgorithmConfig(name="reinforce_plus_plus", gamma=gamma))
    credit = advantages.reinforce_plus_plus(scores_of(rollout), config)
    flat = [r for group in outcome for r in group]
    expected = [
        loops.returns(row, reward, mask, gamma)
        for row, reward, mask in zip(per_token, flat, masks, strict=True)
    ]
    close(credit.advantages, expected, scale=100.0)


@settings
@given(rollouts(), st.floats(0, 1), st.floats(0, 1))
def test_gae_is_the_loop(rollout, gamma, lam):
    outcome, per_token, masks, values = rollout
    config = filled(AlgorithmConfig(name="ppo", gamma=gamma, gae_lambda=lam))
    credit = advantages.gae(scores_of(rollout), config)
    flat = [r for group in outcome for r in group]
    rows = [
        loops.gae(row, reward, mask, value, gamma, lam)
        for row, reward, mask, value in zip(per_token, flat, masks, values, strict=True)
    ]
    close(credit.advantages, [row[0] for row in rows], scale=200.0)
    close(credit.returns, [row[1] for row in rows], scale=200.0)


@settings
@given(rollouts(), st.randoms())
def test_masked_tokens_take_no_part(rollout, random):
    """Whatever stands at them, and wherever they stand, the chosen tokens' advantages stay."""
    scores = scores_of(rollout)
    config = filled(AlgorithmConfig(name="ppo", gamma=0.9, gae_lambda=0.8))
    found = advantages.gae(scores, config)
    hidden = scores.mask == 0
    noise = Scores(
        scores.outcome,
        scores.per_token.masked_fill(hidden, random.uniform(-9, 9)),
        scores.mask,
        scores.values.masked_fill(hidden, random.uniform(-9, 9)),
    )
    same = advantages.gae(noise, config)
    assert torch.equal(found.advantages, same.advantages)
    assert torch.equal(found.returns, same.returns)
    assert (found.advantages[hidden] == 0).all()
    for row in range(len(scores.mask)):  # the same sequence without its masked tokens
        kept = scores.mask[row] > 0
        alone = Scores(
            scores.outcome.flatten()[row : row + 1, None],
            *(part[row][kept][None] for part in (scores.per_token, scores.mask, scores.values)),
        )
        assert torch.equal(advantages.gae(alone, config).advantages[0], found.advantages[row, kept])


@settings
@given(rollouts(), st.randoms())
def test_the_order_of_prompts_and_samples_does_not_matter(rollout, random):
    outcome, per_token, masks, values = rollout
    groups, samples = len(outcome), len(outcome[0])
    order = [
        (g, random.sample(range(samples), samples)) for g in random.sample(range(groups), groups)
    ]
    flat = [g * samples + i for g, inside in order for i in inside]
    mixed = scores_of(
        (
            [[outcome[g][i] for i in inside] for g, inside in order],
            *([part[i] for i in flat] for part in (per_token, masks, values)),
        )
    )
    for name in ("dr_grpo", "rloo", "reinforce_plus_plus", "ppo"):
        row, config = find(name), filled(AlgorithmConfig(name=name))
        found = row.estimate(mixed, config).advantages
        expected = row.estimate(scores_of(rollout), config).advantages[flat]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_lambda_one_makes_the_return_minus_the_value():
    mask = double([[0.0, 1.0, 1.0, 0.0, 1.0]])
    values = double([[9.0, 0.5, 0.25, 9.0, 1.0]])
    scores = Scores(double([[2.0]]), double([[9.0, -0.1, -0.2, 9.0, -0.3]]), mask, values)
    credit = advantages.gae(scores, filled(AlgorithmConfig(name="ppo")))
    close(credit.returns, [[0.0, 1.4, 1.5, 0.0, 1.7]])
    close(credit.advantages, [[0.0, 0.9, 1.25, 0.0, 0.7]])


def test_gae_by_hand():
    """gamma 0.5, lambda 0.5: deltas 1 + 0.5 * 4 - 2 = 1 and 3 - 4 = -1; A_0 = 1 - 0.25."""
    ones = double([[1.0, 1.0]])
    scores = Scores(double([[3.0]]), double([[1.0, 0.0]]), ones, double([[2.0, 4.0]]))
    config = filled(AlgorithmConfig(name="ppo", gamma=0.5, gae_lambda=0.5))
    credit = advantages.gae(scores, config)
    close(credit.advantages, [[0.75, -1.0]])
    close(credit.returns, [[2.75, 3.0]])


def test_the_outcome_is_at_the_last_chosen_token():
    mask = double([[0.0, 1.0, 0.0, 1.0, 0.0], [0.0] * 5])
    scores = Scores(double([[5.0, 7.0]]), torch.full((2, 5), -1.0).double(), mask)
    expected = [[0.0, -1.0, 0.0, 4.0, 0.0], [0.0] * 5]
    assert token_rewards(scores, scores.outcome).tolist() == expected


# -- baselines ------------------------------------------------------------------------------------


def test_group_normalized_by_hand():
    rewards = double([[1.0, 0.0, 0.0, 1.0], [3.0, 1.0, 2.0, 2.0]])
    deviations = [math.sqrt(1 / 3), math.sqrt(2 / 3)]
    expected = [
        [0.5 / (deviations[0] + 1e-6) * sign for sign in (1, -1, -1, 1)],
        [1.0 / (deviations[1] + 1e-6) * sign for sign in (1, -1, 0, 0)],
    ]
    close(group_normalized(rewards), expected)


def test_the_other_baselines_by_hand():
    rewards = double([[6.0, 3.0, 0.0]])
    assert group_centred(rewards).tolist() == [[3.0, 0.0, -3.0]]
    assert leave_one_out(rewards).tolist() == [[4.5, 0.0, -4.5]]  # others' means 1.5, 3, 4.5


@settings
@given(
    st.integers(2, 8).flatmap(
        lambda n: st.lists(
            st.lists(st.floats(-100, 100), min_size=n, max_size=n), min_size=1, max_size=4
        )
    )
)
def test_group_normalized_is_the_loop_over_groups(groups):
    found = group_normalized(double(groups)).tolist()
    for row, rewards in zip(found, groups, strict=True):
        mean, deviation = statistics.fmean(rewards), statistics.stdev(rewards)
        expected = [(r - mean) / (deviation + 1e-6) for r in rewards]
        # centring loses digits relative to the rewards, at most 100
        assert row == pytest.approx(expected, rel=1e-9, abs=1e-9 + 1e-13 / (deviation + 1e-6))


@pytest.mark.parametrize("baseline", [group_normalized, group_centred, leave_one_out])
@settings
@given(reward=st.floats(-1e6, 1e6, width=32), samples=st.integers(2, 17))
def test_equal_rewards_give_zeros_whatever_their_mean_rounds_to(baseline, reward, samples):
    rewards = torch.full((1, samples), reward)
    assert baseline(rewards).tolist() == [[0.0] * samples]


# -- normalization --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mean", "std"])
@settings
@given(rollout=rollouts())
def test_normalization_is_the_loop_over_tokens(kind, rollout):
    _, rows, masks, _ = rollout
    found = advantages.normalized_over_batch(double(rows), double(masks), kind)
    # dividing by a deviation of at least 1e-4 enlarges what centring rounds
    close(found, loops.normalized(rows, masks, kind), scale=1e5 if kind == "std" else 10.0)


def test_normalization_by_hand():
    rows, mask = double([[1.0, 9.0], [2.0, 6.0]]), double([[1.0, 0.0], [1.0, 1.0]])
    normalized = advantages.normalized_over_batch
    close(normalized(rows, mask, "mean"), [[-2.0, 0.0], [-1.0, 3.0]])
    deviation = math.sqrt(14 / 3)
    close(normalized(rows, mask, "std"), [[-2 / deviation, 0.0], [-1 / deviation, 3 / deviation]])
    assert normalized(rows, mask, "none") is rows
    assert normalized(rows, 0 * mask, "std") is rows
