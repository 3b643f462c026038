"""Offline methods as their commands run them, on ranks that are kept alive."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from megarlhf.config import schema
from megarlhf.config.loader import load
from megarlhf.demo.model import make_model
from megarlhf.errors import UserError
from megarlhf.trainer.offline_inputs import prepare
from tests.end_to_end.conftest import figures
from tests.trainer.offline_jobs import count_threads, run_commands

NUMBERS = ["one", "two", "three", "four", "five"]
PAIRS = [(a, b) for a in NUMBERS for b in NUMBERS]
ROWS = {
    schema.RMConfig: [
        {"prompt": f"{a} plus {b}", "chosen": f"it is {b}", "rejected": f"{a} or so"}
        for a, b in PAIRS
    ],
    schema.PRMConfig: [
        {"prompt": f"{a} plus {b}", "completions": [a, b, "done"], "labels": [True, a == b, 0.5]}
        for a, b in PAIRS
    ],
    schema.KTOConfig: [
        {"prompt": f"{a} plus {b}", "completion": f"{b} {a}", "label": a < b} for a, b in PAIRS
    ],
}
ROWS[schema.KDConfig] = [{"input": f"{a} plus {b}", "output": b} for a, b in PAIRS]
ROWS[schema.DPOConfig] = ROWS[schema.RMConfig]
STOPPED_AFTER = {"rm": 1, "prm": 3, "dpo": 2, "kto": 3, "kd": 1}  # steps, of 4
METHODS = {
    "rm": (schema.RMConfig, ["model.parallel.tensor=2"]),
    "prm": (schema.PRMConfig, ["model.parallel.pipeline=2"]),
    "dpo": (schema.DPOConfig, ["loss.reference=cached"]),
    "kto": (schema.KTOConfig, ["model.parallel.context=2"]),
    "kd": (schema.KDConfig, ["teacher.parallel.tensor=2", "teacher.dtype=float32"]),
}


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("teacher")
    make_model(directory, seed=9)
    return directory


@pytest.fixture
def command(model_dir, teacher_dir, tmp_path):
    """The configuration's class and overrides of a method's run in a directory of ``tmp_path``."""

    def command(method, out, *overrides):
        cls, own = METHODS[method]
        for name, rows in (("train", ROWS[cls][4:]), ("eval", ROWS[cls][:4])):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{name}.jsonl").write_text(text)
        return cls, [
            f"model.path={model_dir}",
            "model.dtype=float32",
            f"data.train=json@{tmp_path / 'train.jsonl'}",
            f"data.eval=json@{tmp_path / 'eval.jsonl'}",
            "data.max_tokens=48",
            "train.batch_size=4",
            "train.micro_batch_tokens=128",
            "train.eval_every=2",
            "optimizer.lr=1e-3",
            "output.tensorboard=false",
            f"output.dir={tmp_path / out}",
            *own,
            *([f"teacher.path={teacher_dir}"] if cls is schema.KDConfig else []),
            *overrides,
        ]

    return command


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_stopped_repeats_the_whole_one(ranks, command, tmp_path, method):
    whole, parts, last = tmp_path / "whole", tmp_path / "parts", STOPPED_AFTER[method]
    settings = ("train.steps=4", f"train.save_every={last}", "train.keep_checkpoints=4")
    summary = ranks.run(2, run_commands, [command(method, "whole", *settings)])[0][0]
    uncut = figures(whole)
    assert [row["step"] for row in uncut] == [0, 1, 2, 3, 4]
    judged_by = "loss" if method == "kd" else "accuracy"
    assert summary[f"eval_{judged_by}_before"] == uncut[0][f"eval_{judged_by}"]
    assert summary[f"eval_{judged_by}_after"] == uncut[4][f"eval_{judged_by}"]
    if method == "rm":
        assert margin(whole / "model") == pytest.approx(uncut[4]["eval_margin"], abs=1e-5)

    shutil.copytree(whole, parts)
    for step in range(last + 1, 5):
        shutil.rmtree(parts / "checkpoints" / f"step-{step:08d}", ignore_errors=True)
    shutil.rmtree(parts / "model")
    before = ranks.run(2, count_threads)
    ranks.run(2, run_commands, [command(method, "parts", *settings)])
    for was, now in zip(before, ranks.run(2, count_threads), strict=True):
        assert now - was < 16  # a run's process groups have 48, and must be gone with it
    assert figures(parts) == uncut  # bit for bit, held-out figures included
    weights = [run / "model" / "model.safetensors" for run in (whole, parts)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@torch.no_grad()
def margin(directory: Path) -> float:
    """By how much the exported reward model prefers the chosen answers, to Hugging Face."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()

    def scores(kind):
        ids = [
            [
                *tokenizer(row["prompt"])["input_ids"],
                *tokenizer(row[kind], add_special_tokens=False)["input_ids"],
                tokenizer.eos_token_id,
            ]
            for row in ROWS[schema.RMConfig][:4]
        ]
        return model(**tokenizer.pad({"input_ids": ids}, return_tensors="pt")).logits

    return (scores("chosen") - scores("rejected")).mean().item()


@pytest.mark.parametrize(
    ("method", "overrides", "where"),
    [
        ("kto", ["train.batch_size=1", "model.parallel.context=2"], "train.batch_size"),
        ("rm", ["data.chosen_key=better"], "train.jsonl:1"),
        ("dpo", ["train.batch_size=1"], "train.batch_size"),
        ("kd", ["train.batch_size=3"], "train.batch_size"),
        ("kd", ["teacher.parallel.tensor=3"], "teacher.parallel.tensor"),
        ("kd", ["loss.top_k=100000"], "loss.top_k"),
    ],
)
def test_wrong_input_is_found_before_a_model_is_built(command, tmp_path, method, overrides, where):
    cls, settings = command(method, "out", *overrides)
    with pytest.raises(UserError) as caught:
        prepare(load(cls, None, settings), world=2)
    assert where in caught.value.where
    assert not (tmp_path / "out" / "run.json").exists()  # the corrected command may go there


def test_a_teacher_with_other_tokens(command, tmp_path):
    from transformers import AutoTokenizer

    cls, settings = command("kd", "out")
    teacher = next(s.removeprefix("teacher.path=") for s in settings if "teacher.path" in s)
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(other)
    with pytest.raises(UserError, match="another tokenizer"):
        prepare(load(cls, None, [*settings, f"teacher.path={other}"]), world=2)


def test_one_row_is_too_few_to_estimate_a_kl(command, tmp_path):
    cls, settings = command("kto", "out", "model.parallel.context=1")
    (tmp_path / "eval.jsonl").write_text(json.dumps(ROWS[cls][0]) + "\n")
    with pytest.raises(UserError, match="kto needs at least 2 rows, there are 1"):
        prepare(load(cls, None, settings), world=2)
