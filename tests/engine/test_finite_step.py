"""A step whose loss or gradient is no finite number leaves no trace, on any rank."""

from dataclasses import dataclass

import pytest
import torch

from megarlhf.engine.optimizer import state_tensors
from tests.engine import jobs
from tests.models.zoo import write_model

SEQUENCES = jobs.make_sequences(101, (17, 5, 30, 9, 9, 23, 12, 40))
LAYOUTS = {
    "tp2": (2, {"tensor": 2}, "float32"),
    "pp2": (2, {"pipeline": 2}, "float32"),
    "cp2": (2, {"context": 2}, "float32"),
    "dp2, overlapped": (2, {"overlap": True}, "float32"),
    "dp2 in bfloat16": (2, {}, "bfloat16"),
}


@dataclass
class Broken(jobs.WeightedLikelihood):
    """Breaks at one token of one sequence: its loss is NaN, or its gradient infinite."""

    gradient_only: bool = False

    def __call__(self, logprobs, entropy, batch):
        loss, metrics = super().__call__(logprobs, entropy, batch)
        at = logprobs[batch.fields["broken"] > 0]
        if self.gradient_only:
            return loss + (at - at.detach()).sqrt().sum(), metrics
        return loss + (at * float("nan")).sum(), metrics


def broken_sequences():
    sequences = []
    for index, sequence in enumerate(SEQUENCES):
        broken = [0.0] * len(sequence.token_ids)
        broken[-2] = float(index == 4)
        sequences.append(jobs.Sequence(sequence.token_ids, sequence.loss_mask, {"broken": broken}))
    return sequences


def train_over_broken_steps(rank, world, path, parallel, dtype, kinds):
    """What broken steps said, whether they left all as it was, and the steps after them."""
    engine = jobs.build(rank, world, path, parallel, dtype=dtype)
    jobs.train(engine, SEQUENCES, 1)

    def state():
        tensors = [p.detach() for chunk in engine.chunks for p in chunk.parameters()]
        counts = [group.get("step") for group in engine.optimizer.param_groups]
        return [t.clone() for t in [*tensors, *state_tensors(engine.optimizer)]], counts

    before = state()
    said = jobs.train(engine, broken_sequences(), 1, Broken()) if "loss" in kinds else []
    if "gradient" in kinds:
        said += jobs.train(engine, broken_sequences(), 1, Broken(gradient_only=True))
    after = state()
    same = before[1] == after[1] and all(map(torch.equal, before[0], after[0]))
    return said, same, jobs.train(engine, SEQUENCES, 2)


def assert_no_trace(ranks, path, world, parallel, dtype):
    arguments = (train_over_broken_steps, path, parallel, dtype)
    found = ranks.run(world, *arguments, ("loss", "gradient"))
    expected = ranks.run(world, *arguments, ())
    for (said, same, metrics), (_, _, undisturbed) in zip(found, expected, strict=True):
        assert [step["skipped_steps"] for step in said] == [1.0, 1.0]
        finite = [
            [torch.tensor(step[name]).isfinite().item() for name in ("loss", "grad_norm")]
            for step in said
        ]
        assert finite == [[False, False], [True, False]]
        assert same
        assert metrics == undisturbed  # to the bit


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_broken_step_leaves_no_trace(ranks, llamas, layout):
    assert_no_trace(ranks, llamas[False], *LAYOUTS[layout])


def test_a_broken_step_leaves_no_trace_in_a_mixture(ranks, tmp_path):
    """Whose experts have an optimizer of their own."""
    assert_no_trace(ranks, write_model("mixtral", tmp_path), 2, {"expert": 2}, "float32")
