"""What a plan says of the host's memory."""

import pytest

from megarlhf.plan.fake_run import GRADIENTS, MAIN, OPTIMIZER, WEIGHTS, RankRun
from megarlhf.plan.host_memory import bytes_on_host

ACTOR = RankRun(0, {WEIGHTS: 2, GRADIENTS: 4}, {}, {}, None, 1, host=12)
CRITIC = RankRun(0, {WEIGHTS: 20, GRADIENTS: 40, MAIN: 40, OPTIMIZER: 80}, {}, {}, None, 10, host=0)
REFERENCE = RankRun(0, {WEIGHTS: 2}, {}, {}, None, 1, host=0)


@pytest.mark.parametrize(
    ("processes", "shared", "engines", "expected"),
    [
        ([[CRITIC]], False, False, 0),
        ([[ACTOR, REFERENCE]], False, False, 12),
        ([[ACTOR, REFERENCE]], True, True, 12 + 2 + 2),  # all are away while the engines generate
        ([[ACTOR, REFERENCE], [CRITIC]], True, True, 12 + 4 + 140),
        ([[ACTOR, REFERENCE], [CRITIC]], True, False, 12 + 140),  # while the actor has the GPU
    ],
)
def test_states_and_those_that_are_away(processes, shared, engines, expected):
    assert bytes_on_host(processes, shared=shared, engines=engines) == expected
