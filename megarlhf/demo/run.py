"""The demo: make a model and a task, warm the model up, improve it with RL, check the result."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from megarlhf.demo.task import write_task
from megarlhf.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs" / "demo"
REWARD = Path(__file__).with_name("reward.py")
CHECKED_ANSWERS = 32


def run_demo(directory: str, seed: int) -> int:
    """Run every phase; returns the exit status of the first that fails, or 0.

    Args:
        directory: The RL run's output; what it starts from goes beside it, in ``DIR-start``.
        seed: Seed of the task, the model and both trainings.
    """
    began = time.monotonic()
    out, start = Path(directory), Path(directory + "-start")
    if (out / "summary.json").exists():
        print(f"starting afresh: the finished demo in {out} and {start} is removed")
        shutil.rmtree(out)
        shutil.rmtree(start, ignore_errors=True)
    _make(start, seed)
    if status := _warm_up(start, seed) or _improve(start, out, seed):
        return status
    _say("4. the exported checkpoint, loaded with transformers")
    check_export(out)
    summary = json.loads((out / "summary.json").read_text())
    before, after = summary["accuracy_before"], summary["accuracy_after"]
    print(f"held-out accuracy {before:.1%} -> {after:.1%} in {time.monotonic() - began:.0f} s")
    print(f"the report: {out / 'report.html'}")
    return 0


def _make(start: Path, seed: int) -> None:
    if (start / "base" / "config.json").exists():
        return
    _say("1. a task and a small model with random weights")
    from megarlhf.demo.model import make_model

    write_task(start / "task", seed)
    make_model(start / "base", seed)


def _warm_up(start: Path, seed: int) -> int:
    if (start / "sft" / "model").exists():
        return 0
    _say("2. warm-up: supervised fine-tuning on Megatron-Core, TP=2")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    settings = [f"model.path={start / 'base'}", f"output.dir={start / 'sft'}", f"train.seed={seed}"]
    settings += [f"data.train=json@{start / 'task' / 'sft.jsonl'}"]
    config = f"--config={CONFIGS / 'sft.yaml'}"
    return _run([*torchrun, "-m", "megarlhf", "sft", config, *settings])


def _improve(start: Path, out: Path, seed: int) -> int:
    _say("3. reinforcement learning: GRPO, Megatron-Core TP=2 and vLLM, driven by Ray")
    settings = [f"model.path={start / 'sft' / 'model'}", f"reward.function={REWARD}"]
    settings += [f"data.prompts=json@{start / 'task' / 'rl_train.jsonl'}"]
    settings += [f"data.eval_prompts=json@{start / 'task' / 'heldout.jsonl'}"]
    settings += [f"output.dir={out}", f"train.seed={seed}"]
    return _run(["-m", "megarlhf", "rl", f"--config={CONFIGS / 'rl.yaml'}", *settings])


def check_export(run: Path) -> None:
    """Compare greedy answers of the exported model, by transformers, with the run's last evaluation.

    Raises:
        UserError: An answer differs.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    lines = (run / "evaluation.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    last = [answer for answer in answers if answer["step"] == answers[-1]["step"]]
    for answer in last[:CHECKED_ANSWERS]:
        ids = tokenizer(answer["prompt"], add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            output = model.generate(
                ids, do_sample=False, max_new_tokens=len(answer["response_ids"])
            )
        given = output[0, ids.shape[1] :].tolist()
        if given != answer["response_ids"]:
            raise UserError(
                f"transformers answers {tokenizer.decode(given)!r} to {answer['prompt']!r}, "
                f"the trained actor {answer['response']!r}",
                where=str(run / "model"),
            )
    print(f"{len(last[:CHECKED_ANSWERS])} greedy answers equal the trained actor's")


def _run(arguments: list[str]) -> int:
    print("$ python", *arguments, flush=True)
    return subprocess.run([sys.executable, *arguments], check=False).returncode


def _say(text: str) -> None:
    print(f"\n=== {text}", flush=True)
