"""Supervised fine-tuning as a user runs it: launch/torchrun.sh, two ranks, tensor parallelism."""

import shutil

from megarlhf.report.metrics import MetricsLog
from tests.end_to_end.conftest import figures


def test_loss_falls_and_a_resumed_run_repeats_the_whole_one(tmp_path, sft_command, run_cli):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_cli(sft_command(whole, "train.steps=6", "train.save_every=3"))
    losses = [row["loss"] for row in MetricsLog.read(whole)]
    assert losses[-1] < 0.9 * losses[0]

    shutil.copytree(whole, cut)
    (cut / "summary.json").unlink()
    shutil.rmtree(cut / "model")
    shutil.rmtree(cut / "checkpoints" / "step-00000006")
    run_cli(sft_command(cut, "train.steps=6", "train.save_every=3"))
    assert figures(cut) == figures(whole)  # bit for bit
    a, b = (run / "model" / "model.safetensors" for run in (whole, cut))
    assert a.read_bytes() == b.read_bytes()


def test_wrong_input_is_said_once_and_ends_with_status_2(tmp_path, sft_command, run_cli):
    text = run_cli(sft_command(tmp_path / "out", "model.parallel.tensor=3"), status=1)
    assert text.count("megarlhf: error:") == 1
    assert "model.parallel.tensor" in text
