"""Supervised fine-tuning as a user runs it: launch/torchrun.sh, two ranks, tensor parallelism."""

from megarlhf.report.metrics import MetricsLog
from tests.end_to_end.conftest import SFT_STEPS, figures


def test_loss_falls_and_a_resumed_run_repeats_the_whole_one(
    tmp_path, sft_command, run_cli, whole_sft
):
    losses = [row["loss"] for row in MetricsLog.read(whole_sft)]
    assert losses[-1] < 0.9 * losses[0]

    printed = run_cli(sft_command(tmp_path, "train.steps=3"))
    assert f"logs of each rank: {tmp_path}/logs/" in printed
    assert len(list(tmp_path.glob("logs/*-node0/*/attempt_0/?/stdout.log"))) == 2
    run_cli(sft_command(tmp_path, f"train.steps={SFT_STEPS}"))
    assert figures(tmp_path) == figures(whole_sft)  # bit for bit
    a, b = (run / "model" / "model.safetensors" for run in (whole_sft, tmp_path))
    assert a.read_bytes() == b.read_bytes()


def test_wrong_input_is_said_once_and_ends_with_status_2(tmp_path, sft_command, run_cli):
    text = run_cli(sft_command(tmp_path / "out", "model.parallel.tensor=3"), status=1)
    assert text.count("megarlhf: error:") == 1
    assert "model.parallel.tensor" in "".join(text.splitlines()[-3:])  # said last
