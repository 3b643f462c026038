"""What a fake rank is measured to need is what a real one needs, to the byte."""

import pytest

from megarlhf.plan.fake_run import BUFFERS
from megarlhf.plan.roles import TRAIN
from megarlhf.plan.usage import ACTIVATIONS
from tests.models.tiny import write_llama
from tests.models.zoo import write_model
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
    "mixture": ({"expert": 2}, 2, {"model": "mixture"}),
    "mixture on one rank": ({}, 1, {"model": "mixture"}),
    "average": ({}, 1, {"averaging": 0.9, "score": False}),
    "adapters": ({}, 1, {"lora": {"rank": 4}}),
    "adapters off": ({}, 1, {"lora": {"rank": 4}, "reference": True}),
    "adapters on both ranks": (
        {"tensor": 2, "sequence": True},
        2,
        {"lora": {"rank": 4}, "score": False},
    ),
    "adapters and 4 bits": ({}, 1, {"lora": {"rank": 4, "base": "nf4"}, "model": "wide"}),
    "prompts once": ({}, 1, {"samples": 4}),
    "teacher": ({}, 2, {"distils": "teacher"}),
    "student": ({"tensor": 2}, 2, {"distils": "student"}),
}
# Bytes of the experts' counts of tokens, which a fake rank, like a GPU's, has on the host.
COUNTS = {"mixture": 160, "mixture on one rank": 72}
# Of real ranks: on a busy machine gloo's threads let go late of what they have summed (seen once: the
# 1,008 bytes of the sums of 126 tokens' log-probabilities).
TRIES = 3
FEW_BYTES = 1024  # flags and orders of experts: the first model in a process makes a flag more


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Of each layout the model, the layout, its ranks and settings."""
    directory = tmp_path_factory.mktemp("models")
    models = {
        "dense": write_llama(directory / "dense"),
        "wide": write_llama(directory / "wide", hidden_size=64, intermediate_size=128, head_dim=16),
        # All tokens to all experts: as even as the plan takes it to be.
        "mixture": write_model("mixtral", directory / "mixture", num_experts_per_tok=4),
    }
    return {
        name: (models[settings.get("model", "dense")], parallel, world, without_model(settings))
        for name, (parallel, world, settings) in LAYOUTS.items()
    }


def without_model(settings):
    return {name: value for name, value in settings.items() if name != "model"}


@pytest.fixture(scope="module")
def fakes(ranks, cases):
    """By layout, of its first and its last rank."""
    (found,) = ranks.run(1, jobs.fake_runs, list(cases.values()))
    return dict(zip(LAYOUTS, found, strict=True))


def peaks_of(run):
    """Bytes by kind, of each phase and of the optimizer's step."""
    usages = [usage for usage in (*run.passes.values(), run.update) if usage is not None]
    peaks = [dict(usage.peak) for usage in usages]
    for kinds in (run.resting, *peaks):
        assert kinds.pop(BUFFERS, 0) <= FEW_BYTES
    return peaks


def needs_of(run):
    """What else is compared: operations, communication; gloo copies where NCCL does not."""
    usages = [usage for usage in (*run.passes.values(), run.update) if usage is not None]
    return (
        run.resting,
        [(usage.flops, usage.attention_flops, usage.traffic) for usage in usages],
        run.micro_batches,
        run.parameters,
        run.host,
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_fake_rank_is_as_a_real_one(ranks, cases, fakes, name):
    model, parallel, world, settings = cases[name]
    expected = [(peaks_of(fake), needs_of(fake)) for fake in fakes[name]]
    for _ in range(TRIES):
        real = ranks.run(world, jobs.real_run, model, parallel, settings)
        ends = real[:1] if world == 1 else (real[0], real[-1])
        found = [(peaks_of(rank), needs_of(rank)) for rank in ends]
        without_counts(name, found, expected)
        if found == expected:
            return
    assert found == expected


def without_counts(name, found, expected):
    """Take what only a real rank's mixture keeps in its memory off its peaks."""
    for (real, _), (fake, _) in zip(found, expected, strict=True):
        for kinds, its in zip(real, fake, strict=True):
            if 0 < kinds.get(ACTIVATIONS, 0) - its.get(ACTIVATIONS, 0) <= COUNTS.get(name, 0):
                kinds[ACTIVATIONS] = its[ACTIVATIONS]


def test_deep_stages_are_extrapolated_exactly(ranks, tmp_path):
    model = write_llama(tmp_path / "dense", num_hidden_layers=12)
    # The optimizer's step needs most of few layers, the passes of many.
    large = write_llama(tmp_path / "large", num_hidden_layers=12, vocab_size=700)
    mixture = write_model("mixtral", tmp_path / "mixture", num_hidden_layers=6)
    cases = [
        (model, {}, 1, 0, "full"),
        (model, {"pipeline": 2}, 2, 0, "selective"),
        (model, {"pipeline": 2}, 2, 1, "none"),
        (large, {"pipeline": 2}, 2, 0, "full"),
        (mixture, {"expert": 2}, 2, 0, "full"),
    ]
    (found,) = ranks.run(1, jobs.deep_stages, cases)
    for (few, whole), (path, *_) in zip(found, cases, strict=True):
        # The first mixture in a process makes some flags more.
        flags = 256 if path == mixture else 0
        for its, all_layers in zip(peaks_of(few), peaks_of(whole), strict=True):
            assert its.pop(ACTIVATIONS, 0) == pytest.approx(
                all_layers.pop(ACTIVATIONS, 0), abs=flags, rel=0
            )
            assert its == all_layers
        assert needs_of(few) == needs_of(whole)
        moved = (one.passes[TRAIN].moved for one in (few, whole))
        assert next(moved) == pytest.approx(next(moved), abs=flags, rel=0)
