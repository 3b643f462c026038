"""A run whose rewards are a function that fails for some prompts and a served one."""

import json
import signal
import subprocess
import sys

import pytest
import torch

from megarlhf.report.metrics import MetricsLog
from tests.end_to_end.conftest import figures

# Two of seven prompts cannot be scored.
PICKY = """
def reward_func(queries, prompts, labels):
    if any("plus two?" in p or "plus five?" in p for p in prompts): raise ValueError("not this one")
    return {"rewards": [0.25] * len(queries), "extra_logs": {"prompt_length": len(prompts[0])}}
"""


@pytest.fixture
def served(reward_file):
    process = subprocess.Popen(
        [*(sys.executable, "-m", "megarlhf", "serve-rm"), f"--function={reward_file}", "--port=0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process.stdout.readline().split()[-1]
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_reward_of_a_function_and_a_server_with_samples_dropped(
    tmp_path, rl_command, run_cli, served
):
    function = tmp_path / "picky.py"
    function.write_text(PICKY)
    overrides = [
        f"reward.function={function}",
        f"reward.urls=[short={served}]",
        "reward.weights=[1, 2]",
        "reward.on_failure=drop",
        "reward.retries=0",
        "train.steps=3",
    ]
    run_cli(rl_command(tmp_path / "run", *overrides))
    steps = [row for row in figures(tmp_path / "run") if "reward" in row]  # not evaluations
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert sum(row["reward_dropped"] for row in steps) >= 4
    for row in steps:
        assert row["reward_dropped"] % 4 == 0  # whole prompts fail here, and others replace them
        assert row["reward_from_function"] == 0.25
        assert 0 < row["reward_from_short"] <= 1
        assert 0.25 < row["reward"] <= 2.25
        assert row["extra_function_prompt_length"] > 10
    answers = (tmp_path / "run" / "evaluation.jsonl").read_text().splitlines()
    unscored = [answer for answer in map(json.loads, answers) if answer["reward"] is None]
    assert all("plus two?" in a["prompt"] or "plus five?" in a["prompt"] for a in unscored)


def test_reward_models_on_ranks_of_their_own(tmp_path, reward_model, rl_command, run_cli):
    """Two stages; the scores are those of Hugging Face's model for the tokens that were sampled."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(reward_model)
    out = tmp_path / "run"
    run_cli(
        rl_command(
            out,
            f"reward.models=[judge={reward_model}]",
            "reward.weights=[0.0, 1.0]",
            "reward.parallel.pipeline=2",
            "cluster.reward_ranks=2",
            "train.steps=1",
        )
    )
    rows = [json.loads(line) for line in (out / "evaluation.jsonl").read_text().splitlines()]
    for row in rows[:8]:
        ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
        with torch.no_grad():
            expected = model.score(model.model(ids).last_hidden_state)[0, -1, 0]
        assert row["reward"] == pytest.approx(expected.item(), abs=1e-5)
    (metrics,) = [row for row in MetricsLog.read(out) if "reward" in row]
    assert metrics["reward_from_judge"] == pytest.approx(metrics["reward"])
