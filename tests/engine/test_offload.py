"""Memory that is given back and filled again: the same training, bit for bit."""

import pytest

from tests.engine import jobs

LENGTHS = (17, 5, 30, 9)
ALL = ("weights", "gradients", "optimizer")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("parts", [("gradients",), ("optimizer",), ALL], ids=".".join)
def test_training_goes_on_with_the_same_bits(ranks, llamas, dtype, parts):
    sequences = jobs.make_sequences(101, LENGTHS)
    run = (2, jobs.train_with_offload, llamas[True], {}, sequences, dtype)
    plain, offloaded = ranks.run(*run, ()), ranks.run(*run, parts)
    for (metrics, freed, _), (metrics_off, freed_off, empty) in zip(plain, offloaded, strict=True):
        assert metrics_off == metrics
        assert freed == 0 < freed_off
        assert empty


def test_what_is_given_back_is_what_the_model_holds(ranks, llamas):
    """Two replicas, fp32: weights and gradients whole on each, moments and halves of them."""
    sequences = jobs.make_sequences(101, LENGTHS)
    run = (2, jobs.train_with_offload, llamas[False], {}, sequences, "float32")
    weights, gradients, optimizer = (ranks.run(*run, (part,))[0][1] for part in ALL)
    angles = 4 * 4  # rotary frequencies, a buffer in fp32, go with the weights
    assert gradients == weights - angles
    assert optimizer == pytest.approx(weights, rel=0.02)  # two moments of one half; padding
