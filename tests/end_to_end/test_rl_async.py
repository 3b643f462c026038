"""Sampling ahead of training on the real stack."""

import json
import os
import signal
from collections import defaultdict

from megarlhf.data.prompts import PromptStream
from megarlhf.data.records import Prompt
from megarlhf.report.metrics import MetricsLog, RolloutLog
from tests.end_to_end.started import Started

AHEAD, STEPS, PROMPTS = 2, 6, 6


def test_an_engine_and_the_run_are_lost_on_the_way_and_no_prompt_is(
    tmp_path, rl_command, run_cli, prompts_file
):
    out = tmp_path / "run"
    command = rl_command(
        out,
        f"rollout.async_steps={AHEAD}",
        f"train.steps={STEPS}",
        "algorithm.correction=tis",
        "algorithm.updates_per_rollout=2",
        "ema.decay=0.9",
    )
    run, seen = Started(command), []
    for line in run.process.stdout:
        seen.append(line)
        if line.startswith("step 1/"):
            os.kill(run.named(b"ray::VllmEngine"), signal.SIGKILL)
        if line.startswith("step 4/"):
            os.kill(run.process.pid, signal.SIGTERM)
            break
    seen += run.process.stdout.readlines()
    assert run.process.wait(timeout=60) == 130, "".join(seen)
    assert "engine 0 was lost" in "".join(seen)
    assert run.left() == []
    run_cli(command)

    steps = [row for row in MetricsLog.read(out) if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    assert all(0 <= row["staleness_mean"] <= row["staleness_max"] <= AHEAD for row in steps)
    assert max(row["staleness_max"] for row in steps) > 0
    assert all(row["grad_norm"] > 0 for row in steps)
    assert max(row["queue_length"] for row in steps) <= AHEAD
    assert trained_on(out) == expected(prompts_file)
    assert (out / "ema" / "model.safetensors").exists()


def trained_on(run):
    """The questions of every step."""
    questions = defaultdict(list)
    for row in RolloutLog.read(run):
        questions[row["step"]].append(
            row["prompt"][row["prompt"].index("what") :].partition("?")[0]
        )
    return dict(questions)


def expected(file):
    rows = [json.loads(line)["question"] for line in file.read_text().splitlines()]
    stream = PromptStream([Prompt(i, row, (i,)) for i, row in enumerate(rows)], seed=1)
    return {
        step: [prompt.text.removesuffix("?") for prompt in stream.next_batch(PROMPTS)]
        for step in range(1, STEPS + 1)
    }
