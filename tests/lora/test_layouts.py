"""Adapters under every layout against plain torch in fp64: losses, gradients' norm, what is learned.

Measured in fp32 on CPU: see each tolerance.
"""

import pytest

from tests.engine.jobs import make_sequences
from tests.engine.layouts import LAYOUTS
from tests.engine.test_parity import gather
from tests.lora import jobs, reference
from tests.models.tiny import write_llama

LENGTHS = (17, 5, 30, 9, 9, 23, 12, 40)
STEPS = 3


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A model, adapters of all its linears in files, and what plain torch makes of them."""
    directory = tmp_path_factory.mktemp("lora")
    model = write_llama(directory / "model")
    tensors = jobs.write_adapters(directory / "adapter", model)
    sequences = make_sequences(101, LENGTHS)
    expected = reference.train(reference.adapted_model(model, tensors, 7 / 3), sequences, STEPS)
    return model, directory / "adapter", sequences, expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_trains_the_adapters_as_plain_torch_does(ranks, llama, layout):
    model, start, sequences, (metrics, logprobs) = llama
    world, parallel = LAYOUTS[layout]
    outcome = ranks.run(world, jobs.train, model, parallel, start, sequences, STEPS, {})
    found, after = zip(*outcome, strict=True)
    for ours, theirs in zip(found[0], metrics, strict=True):
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=2e-6), name
    for ours, theirs in zip(gather(after, parallel.get("context", 1)), logprobs, strict=True):
        assert ours == pytest.approx(theirs, abs=4e-5)
