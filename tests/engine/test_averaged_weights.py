"""The moving average of the weights: against a loop in float64, exported, saved and loaded elsewhere."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megarlhf.engine.averaged_weights import AveragedWeights
from megarlhf.models.weights.export import export_huggingface
from tests.engine import jobs
from tests.models.zoo import write_model

DECAY = 0.6
SEQUENCES = jobs.make_sequences(101, (17, 5, 30, 9, 9, 23, 12, 40))
# A layout that trains and saves, and one that loads.
PAIRS = {
    "tp2 to pp2": (2, {"tensor": 2}, 2, {"pipeline": 2}, "float32"),
    "dp2, overlapped, to cp2": (2, {"overlap": True}, 2, {"context": 2}, "bfloat16"),
    "pp2.vpp2 to tp2": (2, {"pipeline": 2, "virtual_pipeline": 2}, 2, {"tensor": 2}, "float32"),
}


def export(engine, average, directory):
    with average.in_place():
        export_huggingface(
            engine.spec,
            engine.topology,
            engine.rank,
            engine.chunks,
            Path(directory),
            torch.float32,
        )


def train_and_save(rank, world, path, parallel, dtype, directory):
    """How far the average is from a loop's in float64, from the weights, and whether these stay.

    And what two more steps say.
    """
    engine = jobs.build(rank, world, path, parallel, dtype=dtype)
    average = AveragedWeights(engine, DECAY)

    def weights():
        return [p.detach().double() for chunk in engine.chunks for p in chunk.parameters()]

    expected = weights()
    for _ in range(3):
        jobs.train(engine, SEQUENCES, 1)
        average.update()
        average.offload()
        average.reload()
        expected = [
            DECAY * mean + (1 - DECAY) * own for mean, own in zip(expected, weights(), strict=True)
        ]
    before = weights()
    with average.in_place():
        found = weights()
    average.save(directory / "average")
    export(engine, average, directory / "exported")
    pairs = list(zip(found, expected, strict=True))
    error = max((mine - theirs).abs().max().item() for mine, theirs in pairs)
    moved = max((a - b).abs().max().item() for a, b in zip(found, before, strict=True))
    stay = all(map(torch.equal, before, weights()))
    return error, moved, stay, jobs.train(engine, SEQUENCES, 2)


def train_without(rank, world, path, parallel, dtype):
    """What the same two steps say in a model that never had an average."""
    return jobs.train(jobs.build(rank, world, path, parallel, dtype=dtype), SEQUENCES, 5)[3:]


def load_and_export(rank, world, path, parallel, dtype, directory):
    engine = jobs.build(rank, world, path, parallel, dtype=dtype)
    average = AveragedWeights(engine, 0.5)
    average.load(directory / "average")
    export(engine, average, directory / "loaded")


def assert_averaged(ranks, path, directory, world, parallel, other_world, other, dtype):
    plain = ranks.run(world, train_without, path, parallel, dtype)[0]
    for error, moved, stay, after in ranks.run(
        world, train_and_save, path, parallel, dtype, directory
    ):
        # Three updates, each rounded to fp32: half a step, 6e-8, of weights around 1.
        assert error < 4e-7
        assert moved > 1e-4
        assert stay
        assert after == plain  # to the bit
    ranks.run(other_world, load_and_export, path, other, dtype, directory)
    first, second = (load_file(directory / d / "model.safetensors") for d in ("exported", "loaded"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, second[name])


@pytest.mark.parametrize("pair", PAIRS)
def test_the_average_follows_and_is_kept(ranks, llamas, tmp_path, pair):
    assert_averaged(ranks, llamas[True], tmp_path, *PAIRS[pair])


def test_the_average_of_experts(ranks, tmp_path):
    path = write_model("mixtral", tmp_path / "model")
    assert_averaged(ranks, path, tmp_path, 2, {"expert": 2}, 2, {"pipeline": 2}, "float32")
