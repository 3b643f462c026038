"""A tiny model with a tokenizer, and how to run the command line as a user does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megarlhf.report.metrics import MetricsLog

TP2 = ("model.parallel.tensor=2", "cluster.actor_ranks=2")
STEPS = 4  # of `whole_run`
SFT_STEPS = 6  # of `whole_sft`
TORCHRUN = Path(__file__).parents[2] / "launch" / "torchrun.sh"

REWARD = """
def reward_func(queries, prompts, labels):
    # Short answers score: something a model of random weights can learn within a few steps.
    return [1.0 / (1 + len(query) - len(prompt)) for query, prompt in zip(queries, prompts)]
"""


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    from megarlhf.demo.model import make_model

    directory = tmp_path_factory.mktemp("model")
    make_model(directory, seed=7)
    return directory


@pytest.fixture(scope="session")
def reward_model(tmp_path_factory, model_dir) -> Path:
    """A Hugging Face reward model with the tiny model's body and tokenizer, and a random head."""
    import torch
    from transformers import AutoModelForSequenceClassification

    directory = tmp_path_factory.mktemp("reward") / "model"
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        model_dir, num_labels=1, pad_token_id=0
    )
    model.save_pretrained(directory)
    for file in model_dir.glob("token*"):
        shutil.copy(file, directory)
    return directory


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    rows = [{"question": f"what is {a} plus {b}?", "label": a} for a in words for b in words]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def reward_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("reward") / "my_reward.py"
    file.write_text(REWARD)
    return file


@pytest.fixture(scope="session")
def rl_command(model_dir, prompts_file, reward_file):
    """Builds `megarlhf rl` with small settings; later overrides win."""

    def command(out: Path, *overrides: str) -> list[str]:
        return [
            *(sys.executable, "-m", "megarlhf", "rl"),
            f"model.path={model_dir}",
            "model.dtype=float32",
            f"data.prompts=json@{prompts_file}",
            f"data.eval_prompts=json@{prompts_file}",
            "data.input_key=question",
            "data.label_key=label",
            "data.apply_chat_template=true",
            "data.max_prompt_tokens=32",
            f"reward.function={reward_file}",
            "rollout.prompts_per_step=6",
            "rollout.samples_per_prompt=4",
            "rollout.max_new_tokens=12",
            "optimizer.lr=1e-3",
            "algorithm.kl_coef=0.01",
            "train.micro_batch_tokens=256",
            f"output.dir={out}",
            *overrides,
        ]

    return command


def under_torchrun(command: list[str], ranks: int) -> list[str]:
    """The same without Ray."""
    python, _, *rest = command
    launcher = ["torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    return [python, "-m", *launcher, f"--nproc_per_node={ranks}", "-m", *rest]


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    words = ["one", "two", "three", "four"]
    rows = [{"input": f"what is {a} plus {b}?", "output": f"{b} {a}"} for a in words for b in words]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def sft_command(model_dir, rows_file):
    """Builds `sft` by launch/torchrun.sh on two ranks; later overrides win."""

    def command(out: Path, *overrides: str) -> list[str]:
        return [
            *(str(TORCHRUN), "--nproc", "2", "--", "sft"),
            f"model.path={model_dir}",
            "model.dtype=float32",
            "model.parallel.tensor=2",
            "model.parallel.sequence=true",
            f"data.train=json@{rows_file}",
            "data.apply_chat_template=true",
            "data.max_tokens=64",
            "train.batch_size=8",
            "optimizer.lr=1e-3",
            f"output.dir={out}",
            *overrides,
        ]

    return command


@pytest.fixture(scope="session")
def run_cli():
    def run(command: list[str], *, status: int = 0, timeout: float = 180) -> str:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory, rl_command, run_cli) -> Path:
    """A run at TP=2 that was not interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run_cli(rl_command(out, *TP2, f"train.steps={STEPS}"))
    return out


@pytest.fixture(scope="session")
def whole_sft(tmp_path_factory, sft_command, run_cli) -> Path:
    """Fine-tuning that was not interrupted, on this machine, saved half-way too."""
    out = tmp_path_factory.mktemp("sft") / "run"
    run_cli(sft_command(out, f"train.steps={SFT_STEPS}", "train.save_every=3"))
    return out


def figures(run: Path) -> list[dict]:
    """A run's metrics without what depends on the clock."""
    return [
        {k: v for k, v in row.items() if k != "time" and not k.startswith("seconds")}
        for row in MetricsLog.read(run)
    ]
