"""What a fake rank is measured to need is what a real one needs, to the byte."""

import pytest

from megarlhf.plan.fake_run import BUFFERS
from tests.models.tiny import write_llama
from tests.plan import jobs

# Long enough sequences that no peak is while gloo reduces and scatters, which it does on copies.
LAYOUTS = {
    "one rank": ({}, 1, {}),
    "float32": ({}, 1, {"dtype": "float32"}),
    "full recompute": ({}, 1, {"recompute": "full", "tokens": 128}),
    "tensor and sequence": ({"tensor": 2, "sequence": True}, 2, {"score": False}),
    "interleaved": ({"pipeline": 2, "virtual_pipeline": 2}, 2, {}),
    "data": ({}, 2, {}),
    "data, states on the host": ({}, 2, {"offload": "states"}),
    "pipeline and context": ({"pipeline": 2, "context": 2}, 4, {}),
}
FEW_BYTES = 64  # Megatron's flags: the first model in a process makes one more of them


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def fakes(ranks, model):
    """By layout, of its first and its last rank."""
    (found,) = ranks.run(1, jobs.fake_runs, [(model, *case) for case in LAYOUTS.values()])
    return dict(zip(LAYOUTS, found, strict=True))


def bytes_of(run):
    """What is compared: memory, operations, communication; gloo copies where NCCL does not."""
    usages = [*run.passes.values(), run.update]
    for kinds in (run.resting, *(usage.peak for usage in usages)):
        assert kinds.pop(BUFFERS, 0) <= FEW_BYTES
    return (
        run.resting,
        [(usage.peak, usage.flops, usage.attention_flops, usage.traffic) for usage in usages],
        run.micro_batches,
        run.parameters,
        run.host,
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_fake_rank_is_as_a_real_one(ranks, model, fakes, name):
    parallel, world, settings = LAYOUTS[name]
    real = ranks.run(world, jobs.real_run, model, parallel, settings)
    ends = real[:1] if world == 1 else (real[0], real[-1])
    for fake, of_rank in zip(fakes[name], ends, strict=True):
        assert bytes_of(fake) == bytes_of(of_rank)


def test_deep_stages_are_extrapolated_exactly(ranks, tmp_path):
    model = write_llama(tmp_path, num_hidden_layers=12)
    for parallel, size, stage in (({}, 1, 0), ({"pipeline": 2}, 2, 1)):
        ((few, whole),) = ranks.run(1, jobs.deep_stage, model, parallel, size, stage)
        assert few == whole
