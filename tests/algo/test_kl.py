"""KL estimators against their formulas; the controller of its coefficient."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from megarlhf.algo.kl import estimate_kl
from megarlhf.algo.kl_coefficient import KLCoefficient
from tests.algo.loops import KL

settings = hypothesis_settings(max_examples=100, deadline=None)


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


@pytest.mark.parametrize("kind", KL)
def test_gradients(kind):
    logprobs = torch.randn(5, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: estimate_kl(x, reference, kind), (logprobs,))


# -- the coefficient ------------------------------------------------------------------------------


def test_a_fixed_coefficient_stays():
    kl = KLCoefficient(0.01, None, 1000)
    kl.update(100.0, 1000)
    assert kl.value == 0.01


@pytest.mark.parametrize(
    ("measured", "factor"),
    [
        (6.0, 1.0),  # at the target
        (6.6, 1 + 0.1 * 0.256),
        (60.0, 1 + 0.2 * 0.256),  # bounded
        (0.0, 1 - 0.2 * 0.256),
    ],
)
def test_the_controller_by_hand(measured, factor):
    kl = KLCoefficient(0.2, 6.0, 1000)
    kl.update(measured, 256)
    assert kl.value == pytest.approx(0.2 * factor, rel=1e-12)


def test_the_controller_finds_the_coefficient_that_gives_its_target():
    kl = KLCoefficient(0.5, 0.1, 100)
    for _ in range(400):
        kl.update(0.02 / kl.value, 10)  # a KL that falls as the coefficient grows
    assert kl.value == pytest.approx(0.2, rel=1e-6)


def test_the_controller_goes_on_from_its_state():
    first, second = KLCoefficient(0.5, 0.1, 100), KLCoefficient(0.5, 0.1, 100)
    first.update(0.3, 50)
    second.load_state_dict(first.state_dict())
    first.update(0.01, 50)
    second.update(0.01, 50)
    assert first.value == second.value
