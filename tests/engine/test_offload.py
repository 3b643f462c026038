"""Memory that is given back and filled again: the same training, bit for bit."""

import pytest
import torch

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


def memory_given_back(rank, world, path):
    """Bytes that `offload` says it gave back, and by how much the device's memory shrank meanwhile."""
    engine = jobs.build(rank, world, path, {}, dtype="bfloat16")
    jobs.train(engine, jobs.make_sequences(101, LENGTHS), 1)
    before = torch.cuda.memory_allocated()
    said = engine.offload(*ALL)
    away = torch.cuda.memory_allocated()
    engine.reload()
    return said, before - away, torch.cuda.memory_allocated() - away


@pytest.mark.gpu
def test_a_gpu_has_its_memory_back(ranks, llamas):
    ((said, given_back, taken),) = ranks.run(1, memory_given_back, llamas[True])
    assert given_back >= said > 0
    assert taken == pytest.approx(given_back, rel=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_on_a_gpu_goes_on(ranks, llamas, dtype):
    """To rounding: its kernels may add in another order each time."""
    sequences = jobs.make_sequences(101, LENGTHS)
    run = (1, jobs.train_with_offload, llamas[True], {}, sequences, dtype)
    ((plain, *_),), ((metrics, freed, empty),) = ranks.run(*run, ()), ranks.run(*run, ALL)
    for ours, theirs in zip(metrics, plain, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5 if dtype == "float32" else 1e-2)
    assert freed > 0 and empty
