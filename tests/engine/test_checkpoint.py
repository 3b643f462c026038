"""A run that is saved and loaded goes on as if nothing had happened, under any layout."""

import shutil

import pytest

from tests.engine import jobs
from tests.engine.layouts import LAYOUTS
from tests.models.zoo import write_model

LENGTHS = (17, 5, 30, 9, 9, 23, 12, 40)
SEQUENCES = jobs.make_sequences(101, LENGTHS, weighted=True)


@pytest.fixture(scope="module")
def saved(ranks, llamas, tmp_path_factory):
    """Saves under a layout, once; returns the directory and the three steps that followed."""
    done = {}

    def save(layout, tied, dtype="float32"):
        if (layout, tied, dtype) not in done:
            directory = tmp_path_factory.mktemp("checkpoint")
            world, parallel = LAYOUTS[layout]
            outcome = ranks.run(
                world,
                jobs.save_then_train,
                llamas[tied],
                parallel,
                SEQUENCES,
                directory,
                {"dtype": dtype},
            )
            done[layout, tied, dtype] = directory, outcome[0]
        return done[layout, tied, dtype]

    return save


def go_on(ranks, path, directory, layout, dtype="float32"):
    world, parallel = LAYOUTS[layout]
    return ranks.run(
        world, jobs.load_then_train, path, parallel, SEQUENCES, directory, {"dtype": dtype}
    )[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("layout", ["tp2", "pp2.vpp2"])
def test_the_same_layout_goes_on_bit_by_bit(ranks, llamas, saved, layout, tied, dtype):
    directory, expected = saved(layout, tied, dtype)
    assert go_on(ranks, llamas[tied], directory, layout, dtype) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_has_made_no_step_goes_on_too(ranks, llamas, tmp_path, dtype):
    """As an actor's that waits for its critic."""
    world, parallel = LAYOUTS["dp2"]
    arguments = (llamas[False], parallel, SEQUENCES, tmp_path, {"dtype": dtype})
    expected = ranks.run(world, jobs.save_then_train, *arguments, 0)[0]
    assert go_on(ranks, llamas[False], tmp_path, "dp2", dtype) == expected


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("tp2", "tp1"),
        ("tp2", "pp2"),
        ("tp2", "dp2"),
        ("tp2", "pp2.vpp2"),
        ("tp2", "tp2.pp2.sp"),
        ("pp2.vpp2", "tp2.sp"),
        ("tp2.pp2.sp", "cp2.dp2"),
    ],
)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_another_layout_goes_on_as_close_as_rounding(ranks, llamas, saved, before, after, tied):
    directory, expected = saved(before, tied)
    found = go_on(ranks, llamas[tied], directory, after)
    for ours, theirs in zip(found, expected, strict=True):
        # Seen: 1e-7 and 3e-7. A lost Adam step or moment is off by 1e-2 at the next step.
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=5e-6)


def test_half_a_checkpoint_is_refused(ranks, llamas, saved, tmp_path):
    directory, _ = saved("tp2", False)
    for file in directory.iterdir():
        if file.name != "metadata.json":  # Megatron writes it last
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (refusal,) = ranks.run(1, jobs.refusal_to_load, llamas[False], tmp_path)
    assert refusal.startswith(f"{tmp_path}: not a whole checkpoint")


def test_a_damaged_checkpoint_is_said(ranks, llamas, saved, tmp_path):
    directory, _ = saved("tp2", False)
    actor = shutil.copytree(directory, tmp_path / "step-00000007/actor")
    for name in ("__0_0.distcp", ".metadata", "common.pt", "metadata.json"):
        whole = (actor / name).read_bytes()
        (actor / name).write_bytes(whole[: len(whole) // 3])
        (refusal,) = ranks.run(1, jobs.refusal_to_load, llamas[False], actor)
        assert refusal.startswith(f"{actor}: the checkpoint cannot be read: "), name
        assert f"remove {tmp_path / 'step-00000007'}" in refusal
        (actor / name).write_bytes(whole)


def test_a_disk_that_is_full_is_said(ranks, llamas, tmp_path):
    (refusal,) = ranks.run(1, jobs.refusal_to_save, llamas[False], tmp_path)
    assert refusal.startswith(f"{tmp_path}: cannot write: File too large")
    assert not (tmp_path / "metadata.json").exists()


def test_metadata_json_is_written_last(saved):
    """What tells a whole checkpoint from half of one."""
    directory, _ = saved("tp2.pp2.sp", True)
    written = sorted(directory.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    assert written[-1].name == "metadata.json"
    assert {file.name for file in written} >= {".metadata", "common.pt", "__3_0.distcp"}


def test_a_mixture_with_latent_attention_goes_on_under_another_layout(ranks, tmp_path):
    """Experts, shared ones, latent projections and the router, each with its moments."""
    path = write_model("deepseek-v3", tmp_path / "hf")
    sequences = jobs.make_sequences(101, LENGTHS, weighted=True)
    saved = tmp_path / "saved"
    saved.mkdir()
    before, after = {"expert": 2, "pipeline": 2}, {"expert": 4}
    expected = ranks.run(4, jobs.save_then_train, path, before, sequences, saved, {})[0]
    found = ranks.run(4, jobs.load_then_train, path, after, sequences, saved, {})[0]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=5e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_goes_on_from_its_checkpoint(ranks, llamas, saved, dtype):
    directory, expected = saved("tp1", False, dtype)
    for ours, theirs in zip(
        go_on(ranks, llamas[False], directory, "tp1", dtype), expected, strict=True
    ):
        assert ours == pytest.approx(theirs, rel=1e-5 if dtype == "float32" else 1e-2)
