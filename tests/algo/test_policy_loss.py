"""The policy's loss against a loop over tokens and sequences, and against cases by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from megarlhf.algo import registry, surrogates
from megarlhf.algo.policy_loss import PolicyLoss
from megarlhf.algo.registry import filled, find
from megarlhf.algo.surrogates import Tokens
from megarlhf.config.schema import AlgorithmConfig
from tests.algo import loops
from tests.algo.packed import MAX_TOKENS, divided, draw_sequences, pack, sequence_sums

settings = hypothesis_settings(max_examples=50, deadline=None)

LENGTHS = (9, 5, 5, 3, 7)
EXACT = {"rel": 1e-12, "abs": 1e-14}


def settled(**changes):
    return filled(AlgorithmConfig(**{"clip_low": 0.1, "clip_high": 0.3, **changes}))


def loss_of(name, config):
    return PolicyLoss(find(name), config, 1.0, MAX_TOKENS, sequence_sums)


def check(name, config, sequences):
    """The tensors' loss and metrics are the loop's; the gradient is its central difference."""
    logprobs, entropy, batch = pack(sequences, config)
    total, metrics = loss_of(name, config)(logprobs, entropy, batch)
    expected, sums = loops.policy_loss(name, sequences, config, MAX_TOKENS)
    assert divided(total, batch).item() == pytest.approx(expected, **EXACT)
    assert {key: value.item() for key, value in metrics.items()} == pytest.approx(sums, **EXACT)
    assert tuple(metrics) == PolicyLoss.metric_names
    return divided(total, batch), logprobs, sums


@pytest.mark.parametrize("name", ["grpo", "gspo", "cispo"])
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum"])
@pytest.mark.parametrize("correction", ["none", "tis", "icepop", "sequence_mask"])
def test_the_loss_is_the_loop(name, aggregation, correction):
    config = settled(
        aggregation=aggregation,
        correction=correction,
        correction_low=0.92,
        correction_high=1.1,
        kl_coef=0.5,
        entropy_coef=0.1,
        dual_clip=1.2,
        clip_low=0.04,
        clip_high=0.05,
    )
    _, _, sums = check(name, config, draw_sequences(LENGTHS))
    tokens = sum(sum(s["mask"]) for s in draw_sequences(LENGTHS))
    assert 0 < sums["clip_fraction"] < tokens
    assert (sums["correction"] != tokens) == (correction != "none")


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
@pytest.mark.parametrize("kind", loops.KL)
def test_kl_is_in_the_loss_only_where_it_is_wanted(kind, kl_in):
    check("grpo", settled(kl_coef=0.5, kl_estimator=kind, kl_in=kl_in), draw_sequences(LENGTHS))


def test_the_kl_of_a_token_that_only_the_sampler_would_choose_is_bounded():
    """p = 1e-6 by now, 0.5 when it was sampled and by the reference: k3 alone is 5e5."""
    token = {"logprobs": [math.log(1e-6)], "entropy": [0.0], "mask": [1.0], "advantages": [0.0]}
    token |= {"rollout_logprobs": [math.log(0.5)], "reference_logprobs": [math.log(0.5)]}
    token |= {"old_logprobs": [math.log(1e-6)], "old_values": [0.0], "returns": [0.0]}
    for correction, kl in {"none": 5e5, "tis": 1.0, "icepop": 1.0}.items():
        config = settled(kl_coef=1.0, kl_estimator="k3", correction=correction)
        logprobs, entropy, batch = pack([token], config)
        total, metrics = loss_of("grpo", config)(logprobs, entropy, batch)
        total.backward()
        assert metrics["kl"].item() == pytest.approx(kl, rel=1e-4)
        assert logprobs.grad.item() == pytest.approx(-kl, rel=1e-4)


def test_without_old_logprobs_the_ratio_is_one_and_the_gradient_the_advantage():
    config = settled(kl_coef=0.0, aggregation="token_mean")
    sequences = draw_sequences(LENGTHS)
    without = ("old_logprobs", "reference_logprobs")
    logprobs, entropy, batch = pack(sequences, config, without=without)
    total, metrics = loss_of("grpo", config)(logprobs, entropy, batch)
    total.backward()
    expected = -batch.fields["advantages"] * batch.loss_mask
    torch.testing.assert_close(logprobs.grad, expected, rtol=1e-12, atol=0)
    assert metrics["clip_fraction"] == metrics["kl"] == 0


@pytest.mark.parametrize("name", ["grpo", "gspo"])
def test_gradients(name):
    """Of what is differentiable; the corrections and the weights of CISPO are constants."""
    config = settled(kl_coef=0.5, dual_clip=3.0, correction="tis", kl_estimator="k3")
    sequences = draw_sequences((4, 3), seed=3)
    logprobs, entropy, batch = pack(sequences, config)
    loss = loss_of(name, config)
    assert torch.autograd.gradcheck(lambda x: loss(x, entropy, batch)[0], (logprobs,))


def test_gradient_of_cispo_is_the_bounded_weight_times_the_advantage():
    config = settled(kl_coef=0.0, clip_low=1.0, clip_high=0.1, aggregation="token_mean")
    sequences = draw_sequences(LENGTHS)
    logprobs, entropy, batch = pack(sequences, config)
    loss_of("cispo", config)(logprobs, entropy, batch)[0].backward()
    expected = [
        -min(math.exp(s["logprobs"][t] - s["old_logprobs"][t]), 1.1) * s["advantages"][t] * m
        for s in sequences
        for t, m in enumerate(s["mask"])
    ]
    assert logprobs.grad.tolist() == pytest.approx(expected, **EXACT)


def test_tokens_that_are_not_trained_have_no_part():
    sequences = draw_sequences(LENGTHS)
    for name in ("grpo", "gspo", "cispo"):
        config = settled(kl_coef=0.5, correction="sequence_mask")
        logprobs, entropy, batch = pack(sequences, config)
        first, metrics = loss_of(name, config)(logprobs, entropy, batch)
        hidden = batch.loss_mask == 0
        assert hidden.any()
        with torch.no_grad():
            for values in (logprobs, entropy, *batch.fields.values()):
                values[hidden] = 7.0
        again, same = loss_of(name, config)(logprobs, entropy, batch)
        assert torch.equal(first, again)
        assert metrics == same
        again.backward()
        assert (logprobs.grad[hidden] == 0).all()


@settings
@given(
    st.sampled_from(["grpo", "gspo", "cispo"]),
    st.sampled_from(["token_mean", "sequence_mean", "sequence_sum"]),
    st.permutations(range(len(LENGTHS))),
    st.integers(1, len(LENGTHS) - 1),
)
def test_packing_and_order_do_not_matter(name, aggregation, order, cut):
    """Any order, packed in one micro-batch or two, gives one loss and one gradient."""
    config = settled(aggregation=aggregation, correction="sequence_mask", kl_coef=0.5)
    sequences = draw_sequences(LENGTHS)
    whole, logprobs, _ = check(name, config, sequences)
    whole.backward()
    gradient = dict(enumerate(logprobs.grad.split(LENGTHS)))
    parts = [order[:cut], order[cut:]]
    packed = [pack([sequences[i] for i in part], config) for part in parts]
    total = sum(loss_of(name, config)(*each)[0] for each in packed)
    value = divided(total, *(batch for _, _, batch in packed))
    value.backward()
    assert value.item() == pytest.approx(whole.item(), **EXACT)
    for part, (moved, _, batch) in zip(parts, packed, strict=True):
        for index, found in zip(part, moved.grad.split(batch.lengths), strict=True):
            torch.testing.assert_close(found, gradient[index], rtol=1e-12, atol=1e-15)


# -- by hand --------------------------------------------------------------------------------------


def one_token(ratio, advantage):
    new = torch.tensor([math.log(ratio) - 1.0], dtype=torch.float64, requires_grad=True)
    same = torch.ones(1, dtype=torch.float64)
    return new, Tokens(new, -same, advantage * same, same, lambda values: values)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "active"),
    [
        (1.0, 2.0, -2.0, False),
        (1.5, 2.0, -2.6, True),  # up to 1.3 counts
        (0.5, 2.0, -1.0, False),  # a good token that became unlikely is pulled back
        (1.5, -2.0, 3.0, False),  # a bad one that became likely is pushed back
        (4.0, -2.0, 6.0, True),  # but not without end: dual clip at 3
        (0.5, -2.0, 1.6, True),  # down to 0.8 counts
        (1.5, 0.0, 0.0, False),
    ],
)
def test_clipped_by_hand(ratio, advantage, loss, active):
    new, tokens = one_token(ratio, advantage)
    config = settled(clip_low=0.2, clip_high=0.3, dual_clip=3.0)
    found, bound = surrogates.clipped(tokens, config)
    assert found.item() == pytest.approx(loss)
    assert bound.tolist() == [active]
    found.sum().backward()
    assert new.grad.item() == pytest.approx(0.0 if active else loss)


def test_a_ratio_that_would_overflow_is_finite_and_without_gradient():
    new, tokens = one_token(1e300, -1.0)
    found, _ = surrogates.clipped(tokens, settled())
    found.sum().backward()
    assert found.item() == pytest.approx(math.exp(20))
    assert new.grad.item() == 0


def test_gspo_takes_the_geometric_mean_of_the_trained_ratios():
    ratios, mask = torch.tensor([2.0, 100.0, 0.5, 8.0]).double(), torch.tensor([1.0, 0, 1, 1])
    ones = torch.ones(4, dtype=torch.float64)
    total = lambda values: values.sum().expand(4)  # noqa: E731
    tokens = Tokens(ratios.log(), 0 * ones, ones, mask.double(), total)
    found, active = surrogates.sequence_clipped(tokens, settled(clip_high=3.0))
    assert found.tolist() == pytest.approx([-2.0] * 4)  # (2 * 0.5 * 8) ** (1/3)
    assert not active.any()


def test_cispo_keeps_the_gradient_of_a_token_whose_weight_is_bounded():
    new, tokens = one_token(1.5, 2.0)
    found, active = surrogates.clipped_weight(tokens, settled(clip_low=1.0, clip_high=0.25))
    found.sum().backward()
    assert active.tolist() == [True]
    assert new.grad.item() == pytest.approx(-1.25 * 2.0)


def test_the_aggregations_by_hand():
    """Losses -1 (advantage 1, ratio 1) at 3 and at 1 tokens; constant 16."""
    flat = {"logprobs": [-1.0], "entropy": [0.0], "mask": [1.0], "advantages": [1.0]}
    names = ("old_logprobs", "rollout_logprobs", "reference_logprobs", "old_values", "returns")
    short = {**flat, **{name: [-1.0] for name in names}}
    long = {name: values * 3 for name, values in short.items()}
    long["advantages"] = [2.0] * 3
    expected = {"token_mean": -7 / 4, "sequence_mean": -3 / 2, "sequence_sum": -7 / 16 / 2}
    for aggregation, value in expected.items():
        config = settled(aggregation=aggregation)
        logprobs, entropy, batch = pack([long, short], config)
        total = loss_of("grpo", config)(logprobs, entropy, batch)[0]
        assert divided(total, batch).item() == pytest.approx(value, **EXACT)


def test_every_row_has_a_loss():
    for row in registry.ALGORITHMS.values():
        config = filled(AlgorithmConfig(name=row.name))
        logprobs, entropy, batch = pack(draw_sequences(LENGTHS), config)
        total, _ = loss_of(row.name, config)(logprobs, entropy, batch)
        total.backward()
        assert torch.isfinite(logprobs.grad).all()
        assert (logprobs.grad != 0).any()
