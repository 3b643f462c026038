"""The main jobs on GPUs, as a user starts them; skipped without any."""

import json
import sys

import pytest
import torch

from megarlhf.report.metrics import MetricsLog
from tests.end_to_end.conftest import under_torchrun

GPUS = torch.cuda.device_count()
TIME_S = 900  # engines compile and record their steps
RL = ("train.steps=3", "stream.verify=always", "rollout.gpu_memory_utilization=0.3")
# Sampler and actor round differently in bfloat16: means of 1e-3 to 1e-2 are usual.
LOGPROB_GAP = {"float32": 1e-3, "bfloat16": 3e-2}


def needs(count):
    return pytest.mark.skipif(count > GPUS, reason=f"fewer than {count} CUDA devices")


def check(run, dtype):
    steps = [row for row in MetricsLog.read(run) if "logprob_gap" in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert max(row["logprob_gap"] for row in steps) < LOGPROB_GAP[dtype]
    assert all(row["grad_norm"] > 0 and row["stream_bytes"] > 0 for row in steps)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(("rollout.placement=colocated",), id="one GPU for all"),
        pytest.param(
            ("rollout.placement=colocated", "optimizer.offload=states"), id="states on the host"
        ),
        pytest.param((), marks=needs(2), id="an engine of its own"),
        pytest.param(("rollout.async_steps=1",), marks=needs(2), id="sampling ahead"),
        pytest.param(
            ("model.parallel.tensor=2", "model.parallel.sequence=true", "cluster.actor_ranks=2"),
            marks=needs(3),
            id="tensor 2",
        ),
        pytest.param(
            ("rollout.placement=colocated", "rollout.tensor_parallel=2", "cluster.actor_ranks=2"),
            marks=needs(2),
            id="an engine of two",
        ),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rl(tmp_path, rl_command, run_cli, dtype, settings):
    out = tmp_path / "run"
    run_cli(rl_command(out, f"model.dtype={dtype}", *RL, *settings), timeout=TIME_S)
    check(out, dtype)


@pytest.mark.gpu
def test_rl_without_ray(tmp_path, rl_command, run_cli):
    out = tmp_path / "run"
    command = rl_command(out, "model.dtype=bfloat16", *RL)
    run_cli(under_torchrun(command, max(GPUS, 1)), timeout=TIME_S)
    check(out, "bfloat16")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sft(tmp_path, model_dir, rows_file, run_cli, dtype):
    out = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "megarlhf", "sft"),
        *(f"model.path={model_dir}", f"model.dtype={dtype}", f"data.train=json@{rows_file}"),
        *("data.apply_chat_template=true", "data.max_tokens=64", "train.batch_size=8"),
        *("optimizer.lr=1e-3", f"output.dir={out}"),
    ]
    run_cli(under_torchrun(command, max(GPUS, 1)), timeout=TIME_S)
    losses = [row["loss"] for row in MetricsLog.read(out) if "loss" in row]
    assert losses[-1] < losses[0]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_the_parity_tool(tmp_path, model_dir, run_cli, dtype):
    """Every layout that makes sense and that there are GPUs for."""
    report = tmp_path / "parity.json"
    command = [sys.executable, "-m", "megarlhf", "parity", "--model", str(model_dir)]
    run_cli([*command, "--dtype", dtype, "--json", str(report)], timeout=TIME_S)
    assert json.loads(report.read_text())["ok"]
