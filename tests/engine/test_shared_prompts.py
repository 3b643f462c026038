"""Prompts that are run once for all of their samples change no result.

Seen in fp64: log-probabilities, loss and every gradient within 4e-15 of the largest. In fp32 the layouts
have the tolerances of `test_parity.py`.
"""

import pytest

from tests.engine import jobs
from tests.engine.layouts import LAYOUTS
from tests.engine.test_parity import assert_close, gather

PROMPTS, RESPONSES = (9, 14, 9, 1), (5, 3, 5, 8)
STEPS = 3


def test_gradients_are_those_of_whole_sequences(ranks, llamas):
    sequences = jobs.make_samples(101, PROMPTS, RESPONSES)
    found = [
        ranks.run(1, jobs.double_gradients, llamas[False], sequences, share)[0]
        for share in (False, True)
    ]
    (before, loss, gradients), (shared_before, shared_loss, shared_gradients) = found
    assert before.keys() == shared_before.keys()
    for index, values in before.items():
        assert shared_before[index] == pytest.approx(values, abs=1e-13)
    assert shared_loss == pytest.approx(loss, rel=1e-13)
    for name, gradient in gradients.items():
        difference = (shared_gradients[name] - gradient).abs().max()
        assert difference <= 1e-13 * gradient.abs().max(), name


@pytest.mark.parametrize("layout", ["dp2", "tp2.sp", "pp2.vpp2"])
def test_a_layout_computes_the_same(ranks, llamas, layout):
    world, parallel = LAYOUTS[layout]
    sequences = jobs.make_samples(101, PROMPTS, RESPONSES)
    found = []
    for share in (False, True):
        settings = {"share": share, "micro_batch_tokens": 80}
        outcome = ranks.run(
            world, jobs.logprobs_and_train, llamas[False], parallel, sequences, STEPS, settings
        )
        before, metrics, after = zip(*outcome, strict=True)
        found.append((gather(before), gather(after), metrics[0]))
    (before, after, metrics), (shared_before, shared_after, shared_metrics) = found
    for ours, theirs, tolerance in ((shared_before, before, 1e-5), (shared_after, after, 4e-5)):
        for values, expected in zip(ours, theirs, strict=True):
            assert values == pytest.approx(expected, abs=tolerance)
    assert_close(shared_metrics, metrics)
