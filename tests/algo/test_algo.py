"""The tensor functions against plain Python loops over floats."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from megarlhf.algo.advantages import group_normalized
from megarlhf.algo.kl import estimate_kl
from megarlhf.algo.policy_loss import PolicyLoss, clipped_surrogate
from megarlhf.algo.registry import find
from megarlhf.algo.supervised_loss import NegativeLogLikelihood
from megarlhf.config.schema import AlgorithmConfig
from megarlhf.data.records import MicroBatch
from megarlhf.errors import UserError

settings = hypothesis_settings(max_examples=100, deadline=None)

KL = {
    "k1": lambda d: d,
    "k2": lambda d: d * d / 2,
    "k3": lambda d: math.exp(-d) - 1 + d,
}


# -- advantages -----------------------------------------------------------------------------------


def test_group_normalized_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [3.0, 1.0, 2.0, 2.0]], dtype=torch.float64)
    deviations = [math.sqrt(1 / 3), math.sqrt(2 / 3)]
    expected = [
        [0.5 / (deviations[0] + 1e-6) * sign for sign in (1, -1, -1, 1)],
        [1.0 / (deviations[1] + 1e-6) * sign for sign in (1, -1, 0, 0)],
    ]
    torch.testing.assert_close(
        group_normalized(rewards), torch.tensor(expected, dtype=torch.float64)
    )


@settings
@given(
    st.integers(2, 8).flatmap(
        lambda n: st.lists(
            st.lists(st.floats(-100, 100), min_size=n, max_size=n), min_size=1, max_size=4
        )
    )
)
def test_group_normalized_is_the_loop_over_groups(groups):
    found = group_normalized(torch.tensor(groups, dtype=torch.float64)).tolist()
    for row, rewards in zip(found, groups, strict=True):
        mean, deviation = statistics.fmean(rewards), statistics.stdev(rewards)
        expected = [(r - mean) / (deviation + 1e-6) for r in rewards]
        # centring loses digits relative to the rewards, at most 100
        assert row == pytest.approx(expected, rel=1e-9, abs=1e-9 + 1e-13 / (deviation + 1e-6))


@settings
@given(st.floats(-1e6, 1e6, width=32), st.integers(2, 17))
def test_equal_rewards_give_zeros_whatever_their_mean_rounds_to(reward, samples):
    rewards = torch.full((1, samples), reward)
    assert group_normalized(rewards).tolist() == [[0.0] * samples]


# -- KL -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KL)
@settings
@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=1, max_size=20))
def test_kl_is_its_formula_at_each_token(kind, pairs):
    logprobs, reference = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    found = estimate_kl(logprobs, reference, kind).tolist()
    expected = [KL[kind](p - q) for p, q in pairs]
    # exp(-d) - 1 loses in the loop what expm1 keeps
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_k3_is_accurate_and_never_negative_near_zero_in_float32():
    d = torch.tensor([1e-4, -1e-4, 1e-5])
    found = estimate_kl(d, torch.zeros(3), "k3")
    # d^2/2, of which fp32 keeps what rounding expm1(-d) + d at 1e-4 leaves: 2^-37 or less
    torch.testing.assert_close(found, d.square() / 2, rtol=0, atol=2**-36)
    assert (found >= 0).all()


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_unbiased_estimators_have_the_divergence_as_their_mean(kind):
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.4, 0.2, 0.4], dtype=torch.float64)
    mean = (p * estimate_kl(p.log(), q.log(), kind)).sum()  # over tokens drawn from p
    torch.testing.assert_close(mean, (p * (p / q).log()).sum())


# -- policy loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.5, 2.0, -2.6, True),  # up to 1.3 counts
        (0.5, 2.0, -1.0, False),  # a good token that became unlikely is pulled back
        (1.5, -2.0, 3.0, False),  # a bad one that became likely is pushed back
        (0.5, -2.0, 1.6, True),  # down to 0.8 counts
        (1.5, 0.0, 0.0, False),
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, loss, clipped):
    new = torch.tensor([math.log(ratio) - 1.0], dtype=torch.float64, requires_grad=True)
    old, advantages = torch.full_like(new, -1.0), torch.full_like(new, advantage)
    found, active = clipped_surrogate(new, old.detach(), advantages, 0.2, 0.3)
    assert found.item() == pytest.approx(loss)
    assert active.tolist() == [clipped]
    found.sum().backward()
    assert new.grad.item() == pytest.approx(0.0 if clipped else loss)


def draw_batch(*, old: bool, reference: bool, seed: int = 0):
    """A packed batch of fp64 fields; the log-probabilities move by up to two clips."""
    generator = torch.Generator().manual_seed(seed)
    tokens = 40

    def near(x):
        return x + 0.2 * torch.randn(tokens, generator=generator, dtype=torch.float64)

    logprobs = -2 + near(torch.zeros(tokens))
    fields = {
        "advantages": torch.randn(tokens, generator=generator, dtype=torch.float64),
        "loss_weight": torch.rand(tokens, generator=generator, dtype=torch.float64),
        "rollout_logprobs": near(logprobs),
    }
    if old:
        fields["old_logprobs"] = near(logprobs)
    if reference:
        fields["reference_logprobs"] = near(logprobs)
    mask = (torch.rand(tokens, generator=generator) < 0.7).double()
    empty = torch.zeros(tokens, dtype=torch.int64)
    batch = MicroBatch(empty, empty, empty, mask, fields, mask == 0, (tokens,), (0,))
    return logprobs, near(logprobs).abs(), batch


def naive_loss(config, logprobs, old_or_self, entropy, batch):
    """The loss and its metrics, one token at a time."""
    names = ("policy_loss", "kl", "entropy", "clip_fraction", "logprob_gap")
    loss, sums = 0.0, dict.fromkeys(names, 0.0)
    fields = {name: values.tolist() for name, values in batch.fields.items()}
    for t, trained in enumerate(batch.loss_mask.tolist()):
        if not trained:
            continue
        ratio = math.exp(logprobs[t] - old_or_self[t])
        low, high = 1 - config.clip_low, 1 + config.clip_high
        advantage = fields["advantages"][t]
        surrogate = -min(ratio * advantage, min(max(ratio, low), high) * advantage)
        kl = 0.0
        if "reference_logprobs" in fields:
            kl = KL[config.kl_estimator](logprobs[t] - fields["reference_logprobs"][t])
        loss += (surrogate + config.kl_coef * kl) * fields["loss_weight"][t]
        sums["policy_loss"] += surrogate
        sums["kl"] += kl
        sums["entropy"] += entropy[t]
        sums["clip_fraction"] += (ratio > high and advantage > 0) or (ratio < low and advantage < 0)
        sums["logprob_gap"] += abs(old_or_self[t] - fields["rollout_logprobs"][t])
    return loss, sums


@pytest.mark.parametrize("kind", KL)
@pytest.mark.parametrize("old", [True, False], ids=["old", "one-update"])
@pytest.mark.parametrize("reference", [True, False], ids=["reference", "no-reference"])
def test_policy_loss_is_the_loop_over_tokens(kind, old, reference):
    config = AlgorithmConfig(clip_low=0.1, clip_high=0.3, kl_coef=0.5, kl_estimator=kind)
    logprobs, entropy, batch = draw_batch(old=old, reference=reference)
    before = batch.fields.get("old_logprobs", logprobs).tolist()
    new = logprobs.clone().requires_grad_()
    loss, metrics = PolicyLoss(config, temperature=1.0)(new, entropy, batch)
    expected, sums = naive_loss(config, logprobs.tolist(), before, entropy.tolist(), batch)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(sums, rel=1e-12)
    assert tuple(metrics) == PolicyLoss.metric_names
    if old:
        assert sums["clip_fraction"] > 0

    loss.backward()
    step = 1e-6
    for t in range(len(logprobs)):
        around = []
        for sign in (1, -1):
            moved = logprobs.tolist()
            moved[t] += sign * step
            around.append(naive_loss(config, moved, before, entropy.tolist(), batch)[0])
        slope = (around[0] - around[1]) / (2 * step)
        # central differences: error h^2 + 1e-16 * |loss| / h, seen below 1e-8
        assert new.grad[t].item() == pytest.approx(slope, abs=1e-7)


def test_tokens_that_are_not_trained_have_no_part():
    config = AlgorithmConfig(kl_coef=0.5)
    logprobs, entropy, batch = draw_batch(old=True, reference=True)
    loss, metrics = PolicyLoss(config, temperature=1.0)(logprobs, entropy, batch)
    hidden = batch.loss_mask == 0
    for values in (logprobs, entropy, *batch.fields.values()):
        values[hidden] = 7.0
    again, same = PolicyLoss(config, temperature=1.0)(logprobs, entropy, batch)
    assert hidden.any()
    assert torch.equal(loss, again)
    assert metrics == same


def test_negative_log_likelihood_sums_what_is_trained():
    logprobs, _, batch = draw_batch(old=False, reference=False)
    loss, metrics = NegativeLogLikelihood()(logprobs, None, batch)
    trained = [-p for p, m in zip(logprobs.tolist(), batch.loss_mask.tolist(), strict=True) if m]
    assert loss.item() == pytest.approx(math.fsum(trained), rel=1e-12)
    assert metrics == {}


# -- registry -------------------------------------------------------------------------------------


def test_grpo_weighs_every_response_the_same():
    grpo = find("grpo")
    assert grpo.token_weight(4) * 4 == grpo.token_weight(100) * 100 == 1.0
    assert grpo.advantages is group_normalized
    assert grpo.min_samples == 2


@pytest.mark.parametrize(
    ("name", "hint"), [("gpro", "did you mean grpo"), ("sarsa-lambda", "known: grpo")]
)
def test_an_unknown_algorithm_is_refused_with_the_nearest(name, hint):
    with pytest.raises(UserError) as error:
        find(name)
    assert "algorithm.name" in str(error.value)
    assert repr(name) in str(error.value)
    assert hint in str(error.value)
