"""Prompts that are run once for all of their samples change no result.

Seen in fp64 over all layouts: log-probabilities within 1e-14, metrics within 1e-12 relative after three
steps, the gradient's norm among them.
"""

import pytest

from tests.engine import jobs
from tests.engine.layouts import LAYOUTS
from tests.engine.test_parity import gather

PROMPTS, RESPONSES = (9, 14, 9, 1), (5, 3, 5, 8)
STEPS = 3


@pytest.mark.parametrize("layout", ["tp1", "dp2", "tp2.sp", "pp2.vpp2"])
def test_a_layout_computes_the_same(ranks, llamas, layout):
    world, parallel = LAYOUTS[layout]
    sequences = jobs.make_samples(101, PROMPTS, RESPONSES)
    found = []
    for share in (False, True):
        settings = {"dtype": "float64", "share": share, "micro_batch_tokens": 80}
        outcome = ranks.run(
            world, jobs.logprobs_and_train, llamas[False], parallel, sequences, STEPS, settings
        )
        before, metrics, after = zip(*outcome, strict=True)
        found.append((gather(before), gather(after), metrics[0]))
    (before, after, metrics), shared = found
    for ours, theirs in ((shared[0], before), (shared[1], after)):
        for values, expected in zip(ours, theirs, strict=True):
            assert values == pytest.approx(expected, abs=1e-12)
    for step, expected in zip(shared[2], metrics, strict=True):
        assert step == pytest.approx(expected, rel=1e-11)
