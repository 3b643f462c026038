"""Responses sampled, scored and kept by the command, stopped in between; rows for training."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from transformers import AutoTokenizer

from megarlhf.config import schema
from megarlhf.config.loader import load
from megarlhf.data.records import Sample
from megarlhf.errors import UserError
from megarlhf.models.lora.adapter import PREFIX
from megarlhf.report import jsonl
from megarlhf.report.metrics import MetricsLog
from megarlhf.trainer import generation
from megarlhf.trainer.generated_files import GeneratedFiles
from megarlhf.trainer.offline_inputs import prepare
from tests.lora.jobs import write_adapters
from tests.models.tiny import read_tensors

ITERATE = Path(__file__).parents[2] / "launch" / "iterate.sh"


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_round_of_sampling_and_training(tmp_path, rl_command, run_cli, model_dir):
    """launch/iterate.sh: vLLM samples with adapters, the reward scores, DPO trains others."""
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
    run_cli([*command, "--train", "output.tensorboard=false"])
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


class Engines:
    """Answers by the seed alone, as vLLM does."""

    asked: ClassVar[list[int]] = []
    made: ClassVar[list["Engines"]] = []

    def __init__(self, config, settings, *_):
        self.model = read_tensors(Path(settings.model_path))
        self.made.append(self)

    def start(self):
        pass

    def generate(self, prompts, sampling, seeds):
        self.asked.extend(prompt.index for prompt in prompts)
        return [
            [
                Sample(p, [seed % 50 + n], [0.0], 0, "stop", f"{(seed + n) % 7 * 'x'}y")
                for n in range(sampling.samples)
            ]
            for p, seed in zip(prompts, seeds, strict=True)
        ]


def nothing_kept(placement):
    return nullcontext()


def test_a_run_that_was_killed_goes_on(tmp_path, rl_command, monkeypatch, capsys):
    monkeypatch.setattr(generation, "EngineGroup", Engines)
    out = tmp_path / "out"
    _, _, _, _, *overrides = rl_command(out, "data.max_samples=10", "reward.workers=0")
    config = load(schema.RLConfig, None, overrides)
    summary = generation.generate(config, nothing_kept)
    whole = {name: (out / f"{name}.jsonl").read_text() for name in ("samples", "best", "pairs")}
    lines = whole["samples"].splitlines(keepends=True)
    (out / "samples.jsonl").write_text("".join(lines[:6]) + lines[6][:20])
    Engines.asked.clear()
    assert generation.generate(config, nothing_kept) == summary
    assert Engines.asked == [6, 7, 8, 9]
    assert "6 of 10 prompts are done" in capsys.readouterr().out
    assert jsonl.read(out / "samples.jsonl") == [json.loads(line) for line in lines]
    assert all((out / f"{name}.jsonl").read_text() == whole[name] for name in ("best", "pairs"))


def test_adapters_are_sampled_with(tmp_path, rl_command, model_dir, monkeypatch):
    monkeypatch.setattr(generation, "EngineGroup", Engines)
    tensors = write_adapters(tmp_path / "adapter", model_dir, targets=("q_proj",))
    _, _, _, _, *overrides = rl_command(tmp_path / "out", "data.max_samples=2", "reward.workers=0")
    overrides.append(f"lora.path={tmp_path / 'adapter'}")
    generation.generate(load(schema.RLConfig, None, overrides), nothing_kept)
    found, base = Engines.made[-1].model, read_tensors(model_dir)
    name = "model.layers.1.self_attn.q_proj."
    down, up = (tensors[f"{PREFIX}{name}lora_{matrix}.weight"] for matrix in "AB")
    expected = base[f"{name}weight"] + 7 / 3 * up @ down
    assert torch.allclose(found[f"{name}weight"], expected, atol=1e-6)
    assert torch.equal(found["lm_head.weight"], base["lm_head.weight"])
    assert not (tmp_path / "out" / "merged").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["lora.rank=4"], "lora.rank: nothing is trained here, and new adapters add nothing"),
        (["lora.path=ADAPTER", "lora.base=nf4"], "lora.base: is nf4, but adapters are sampled"),
        (["lora.path=nowhere"], "adapter_config.json is missing"),
    ],
)
def test_adapters_that_cannot_be_sampled_with(tmp_path, rl_command, model_dir, settings, said):
    write_adapters(tmp_path / "adapter", model_dir)
    settings = [setting.replace("ADAPTER", str(tmp_path / "adapter")) for setting in settings]
    _, _, _, _, *overrides = rl_command(tmp_path / "out", *settings)
    with pytest.raises(UserError) as refused:
        generation.generate(load(schema.RLConfig, None, overrides), nothing_kept)
    assert said in str(refused.value)


def test_best_and_pairs_of_what_was_sampled(tmp_path):
    def response(text, reward, finish="stop"):
        return {"text": text, "reward": reward, "finish_reason": finish, "tokens": 1}

    responses = {
        0: [response("a", 0.5), response("b", 1.0), response("c", 0.0)],
        1: [response("cut", 9.0, "length"), response("same", 1.0), response("too", 1.0)],
        2: [response("cut", 1.0, "length"), response("unscored", None)],
    }
    for step, group in responses.items():
        record = {"step": step, "prompt": f"p{step}", "label": None, "responses": group}
        jsonl.append(tmp_path / "samples.jsonl", record)
    summary = GeneratedFiles(tmp_path, {}).select()
    assert [(r["input"], r["output"]) for r in read(tmp_path / "best.jsonl")] == [
        ("p0", "b"),
        ("p1", "same"),
    ]
    (pair,) = read(tmp_path / "pairs.jsonl")
    assert (pair["chosen"], pair["rejected"], pair["margin"]) == ("b", "c", 1.0)
    assert (summary["responses"], summary["best"], summary["pairs"]) == (7, 2, 1)
