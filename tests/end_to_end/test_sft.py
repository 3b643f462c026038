"""Supervised fine-tuning as a user runs it: launch/torchrun.sh, two ranks, tensor parallelism."""

import shutil

from megarlhf.report.metrics import MetricsLog
from tests.end_to_end.conftest import SFT_STEPS, figures


def test_loss_falls_and_a_resumed_run_repeats_the_whole_one(
    tmp_path, sft_command, run_cli, whole_sft
):
    losses = [row["loss"] for row in MetricsLog.read(whole_sft)]
    assert losses[-1] < 0.9 * losses[0]

    cut = tmp_path / "cut"
    shutil.copytree(whole_sft, cut)
    (cut / "summary.json").unlink()
    shutil.rmtree(cut / "model")
    shutil.rmtree(cut / "checkpoints" / f"step-{SFT_STEPS:08}")
    shutil.rmtree(cut / "logs")
    printed = run_cli(sft_command(cut, f"train.steps={SFT_STEPS}", "train.save_every=3"))
    assert f"logs of each rank: {cut}/logs/" in printed
    assert len(list(cut.glob("logs/*-node0/*/attempt_0/?/stdout.log"))) == 2
    assert figures(cut) == figures(whole_sft)  # bit for bit
    a, b = (run / "model" / "model.safetensors" for run in (whole_sft, cut))
    assert a.read_bytes() == b.read_bytes()


def test_wrong_input_is_said_once_and_ends_with_status_2(tmp_path, sft_command, run_cli):
    text = run_cli(sft_command(tmp_path / "out", "model.parallel.tensor=3"), status=1)
    assert text.count("megarlhf: error:") == 1
    assert "model.parallel.tensor" in "".join(text.splitlines()[-3:])  # said last
