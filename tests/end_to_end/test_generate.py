"""Responses sampled, scored and kept by the command, stopped in between; rows for training."""

import json
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from megarlhf.config import schema
from megarlhf.config.loader import load
from megarlhf.report.metrics import MetricsLog
from megarlhf.trainer.offline_inputs import prepare
from tests.lora.jobs import write_adapters

ITERATE = Path(__file__).parents[2] / "launch" / "iterate.sh"


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.timeout(600)  # seven processes start one after the other
def test_a_round_of_sampling_and_training(tmp_path, rl_command, run_cli, model_dir):
    """launch/iterate.sh: vLLM samples with adapters, the reward scores, DPO trains others.

    Then it samples again as if it had been killed while it wrote.
    """
    write_adapters(tmp_path / "adapter", model_dir, targets=("q_proj",))
    _, _, _, _, *settings = rl_command(tmp_path, "data.max_samples=10", "rollout.max_new_tokens=24")
    theirs = [s for s in settings if not s.startswith(("output.dir", "model.path"))]
    command = [str(ITERATE), "dpo", "--model", str(model_dir), "--rounds", "1"]
    command += ["--out", str(tmp_path), "--generate", f"lora.path={tmp_path / 'adapter'}"]
    command += ["--train", "lora.rank=2"]
    for setting in theirs:
        command += ["--generate", setting]
    for setting in ("model.dtype=float32", "train.batch_size=4", "train.steps=2"):
        command += ["--train", setting]
    run_cli([*command, "--train", "output.tensorboard=false"], timeout=400)
    out = tmp_path / "round-1" / "generate"
    samples, pairs = read(out / "samples.jsonl"), read(out / "pairs.jsonl")
    assert [record["step"] for record in samples] == list(range(10))
    assert all(len(record["responses"]) == 4 for record in samples)
    assert pairs and all(row["margin"] > 0 for row in pairs)
    for row in read(out / "best.jsonl"):
        whole = [r for r in samples[row["step"]]["responses"] if r["finish_reason"] == "stop"]
        assert row["reward"] == max(response["reward"] for response in whole)
    trained = tmp_path / "round-1" / "train"
    assert (trained / "model" / "model.safetensors").is_file()  # merged, for the next round
    assert [row["step"] for row in MetricsLog.read(trained)] == [1, 2]

    overrides = [
        f"model.path={model_dir}",
        f"data.train=json@{out / 'pairs.jsonl'}",
        "train.batch_size=2",
        f"output.dir={tmp_path / 'again'}",
    ]
    rows = prepare(load(schema.DPOConfig, None, overrides), world=1).rows
    prompt = AutoTokenizer.from_pretrained(model_dir)(pairs[0]["prompt"])["input_ids"]
    assert rows[0].prompt_tokens == len(prompt)
    assert "model of round 1" in run_cli(command)  # nothing is done again

    whole = {name: (out / f"{name}.jsonl").read_text() for name in ("samples", "best", "pairs")}
    lines = whole["samples"].splitlines(keepends=True)
    (out / "samples.jsonl").write_text("".join(lines[:6]) + lines[6][:20])
    (out / "pairs.jsonl").unlink()
    settings = [*theirs, f"lora.path={tmp_path / 'adapter'}", "train.seed=1"]
    paths = [f"model.path={model_dir}", f"output.dir={out}"]
    said = run_cli([sys.executable, "-m", "megarlhf", "generate", *settings, *paths])
    assert "6 of 10 prompts are done" in said
    assert {name: (out / f"{name}.jsonl").read_text() for name in whole} == whole
