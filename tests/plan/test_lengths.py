"""Lengths of which the mean and the longest are known, and how a rollout of them ends."""

import pytest

from megarlhf.models.spec import ModelSpec
from megarlhf.plan.decoding import generation
from megarlhf.plan.engines import EngineNeeds
from megarlhf.plan.hardware import Calibration, gpu
from megarlhf.plan.lengths import Lengths
from megarlhf.plan.subject import KNOWN_MODELS
from megarlhf.plan.timing import Machines

MACHINES = Machines(gpu("h100"), 8, Calibration())
PARAMETERS = 7_504_924_672


@pytest.mark.parametrize(("mean", "longest"), [(910, 3584), (1792, 3584), (3053, 3584), (9, 9)])
def test_mean_and_mean_square_are_those_of_the_spread(mean, longest):
    spread, steps = Lengths(mean, longest), 2000
    middles = [(number + 0.5) * longest / steps for number in range(steps)]
    longer = [spread.longer_than(tokens) for tokens in middles]
    assert longer == sorted(longer, reverse=True) and spread.longer_than(longest) == 0
    assert sum(longer) * longest / steps == pytest.approx(mean, rel=1e-3)
    squares = 2 * sum(map(float.__mul__, middles, map(float, longer))) * longest / steps
    assert squares == pytest.approx(spread.mean_square, rel=1e-3)


def seconds_of(responses, held=256, samples=16):
    """Of 16 prompts on one engine that holds so many sequences."""
    spec = ModelSpec.read(KNOWN_MODELS / "llama-3.1-8b-instruct")
    needs = EngineNeeds(1, 1, 16 * 10**9, 131072, 10**10, 2048, held)
    found = generation(spec, needs, 16, samples, (100, responses), 1024, MACHINES, PARAMETERS)
    return found.parts["decoding"]


def test_equal_responses_end_together():
    weights = 1024 * 16e9 / (3350e9 * 0.6)  # each step reads them once
    cache = 256 * 1024 * (100 + 512) * 131072 / (3350e9 * 0.6)
    assert seconds_of(1024) == pytest.approx(weights + cache, rel=1e-3)
    assert seconds_of(1024, held=128) == pytest.approx(2 * weights + cache, rel=1e-3)


def test_a_rollout_ends_with_its_longest_response():
    weights = 1024 * 16e9 / (3350e9 * 0.6)
    assert weights < seconds_of(256) < seconds_of(512) < seconds_of(1024)
    # Where others wait, the weights are read no oftener for the same tokens.
    assert seconds_of(256, held=128) < seconds_of(256) + weights / 2
