"""Communication that overlaps computation: the same training.

Not bit for bit, as gradients are cut into other buckets and so summed in another order. Seen: losses
and norms within 2e-7 relative, weights after two steps at a learning rate of 1e-3 within 5e-7. A
parameter that is read before it is gathered is off by a step, 1e-3.
"""

import pytest
import torch

from tests.engine import jobs
from tests.models.zoo import write_model

LENGTHS = (17, 5, 30, 9, 9, 23, 12, 40)
LAYOUTS = {
    "dp2": (2, {}),
    "tp2.dp2": (4, {"tensor": 2, "sequence": True}),
    "cp2.dp2": (4, {"context": 2}),
    "pp2.vpp2.dp2": (4, {"pipeline": 2, "virtual_pipeline": 2}),
}


def assert_same(ranks, path, world, parallel):
    sequences = jobs.make_sequences(101, LENGTHS)
    plain, overlapped = (
        ranks.run(
            world, jobs.train_in_small_buckets, path, {**parallel, "overlap": on}, sequences, 2
        )
        for on in (False, True)
    )
    for (metrics, weights, logprobs), (metrics_on, weights_on, logprobs_on) in zip(
        plain, overlapped, strict=True
    ):
        for step, step_on in zip(metrics, metrics_on, strict=True):
            assert step_on == pytest.approx(step, rel=1e-6)
        for index, values in logprobs.items():
            assert logprobs_on[index] == pytest.approx(values, abs=1e-5)
        for name, values in weights.items():
            torch.testing.assert_close(weights_on[name], values, rtol=0, atol=2e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_overlap_trains_the_same(ranks, llamas, layout, tied):
    assert_same(ranks, llamas[tied], *LAYOUTS[layout])


def test_overlap_with_experts(ranks, tmp_path):
    assert_same(ranks, write_model("mixtral", tmp_path), 4, {"expert": 2})
