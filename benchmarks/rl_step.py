"""Samples a second of RL steps, ours against TRL's GRPOTrainer, with the seconds of each phase.

The same model, prompts, batch, lengths, reward, algorithm (GRPO with a KL to a reference) and number of
cores, in one run, by turns: each turn a new process, whose first step is not counted. TRL generates with
transformers, its default: its ways to use vLLM need a GPU.

Models of random weights hardly ever stop, so that all answers are as long as they may be. The model
called ``warm`` is what the demo's RL begins with (``--start``), whose answers are long and short.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.timing import table, write_json
from benchmarks.train_step import write_model
from megarlhf.demo.model import make_model, make_tokenizer
from megarlhf.demo.task import write_task

PROMPT = 24  # tokens, at most
REWARD = Path(__file__).parents[1] / "megarlhf" / "demo" / "reward.py"


@dataclass(frozen=True)
class Case:
    """What a step is.

    Attributes:
        model: Hugging Face directory.
        prompts: JSON lines: question and label.
        prompts_per_step: Of them.
        samples: Of a prompt.
        max_new_tokens: Of a sample.
        micro_batch: Samples of a forward pass of TRL's; ours takes as many tokens.
        cores: Of the machine, for either.
        steps: Of a turn, the first not counted.
        kl_coef: Weight of the KL to the reference.
        lr: Learning rate.
    """

    model: str
    prompts: str
    prompts_per_step: int
    samples: int
    max_new_tokens: int
    micro_batch: int
    cores: int
    steps: int
    kl_coef: float = 0.005
    lr: float = 1e-6


SIZES = {"demo": (64, 8, 24, 128), "warm": (64, 8, 24, 128), "20m": (16, 8, 64, 32)}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rl_step", description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["demo", "20m"])
    parser.add_argument("--start", type=Path, help="DIR-start of `megarlhf demo`, for `warm`")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if "warm" in options.sizes and options.start is None:
        parser.error("--sizes warm needs --start")
    rows = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as directory:
            case = prepared(size, Path(directory), options)
            rows += measured(size, case, options)
        for row in rows[-len(options.ways) :]:
            print(table([row]), flush=True)
    write_json(options.json, {**vars(options), "json": None, "rows": rows})


def prepared(size: str, directory: Path, options: argparse.Namespace) -> Case:
    """The model and the prompts of the demo's task."""
    path = directory / "model"
    if size == "demo":
        make_model(path, seed=1)
    elif size == "warm":
        path = options.start / "sft" / "model"
    else:
        write_model(path, size)
        make_tokenizer().save_pretrained(path)
        file = path / "generation_config.json"
        file.write_text(json.dumps({"eos_token_id": make_tokenizer().eos_token_id}))
    write_task(directory / "task", seed=1)
    prompts, samples, length, micro_batch = SIZES[size]
    return Case(
        model=str(path),
        prompts=str(directory / "task" / "rl_train.jsonl"),
        prompts_per_step=prompts,
        samples=samples,
        max_new_tokens=length,
        micro_batch=micro_batch,
        cores=options.cores,
        steps=options.steps,
    )


def measured(size: str, case: Case, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The best step of all turns: the one least disturbed by a machine's other work."""
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in options.ways}
    lengths = {}
    for _ in range(options.turns):
        for name in options.ways:
            with tempfile.TemporaryDirectory() as directory:
                found, lengths[name] = WAYS[name](case, Path(directory))
            steps[name] += found[1:]
            print(
                f"{size}, {name}: steps of {[round(one['step'], 2) for one in found]} s", flush=True
            )
    samples = case.prompts_per_step * case.samples
    seconds = {name: min(of_way, key=lambda one: one["step"]) for name, of_way in steps.items()}
    base = seconds.get("TRL", {}).get("step")
    return [
        {
            "model": size,
            "way": name,
            "tokens a sample": lengths[name],
            "samples/s": samples / found["step"],
            "ratio": base / found["step"] if base else "",
            **{f"s {part}": value for part, value in found.items()},
        }
        for name, found in seconds.items()
    ]


def ours(case: Case, directory: Path) -> tuple[list[dict[str, float]], float]:
    """A run of ``megarlhf rl``: a rank and an engine on each core, which take turns."""
    settings = {
        "model.path": case.model,
        "model.dtype": "float32",
        "cluster.actor_ranks": case.cores,
        "data.prompts": f"json@{case.prompts}",
        "data.input_key": "question",
        "data.max_prompt_tokens": PROMPT,
        "data.label_key": "label",
        "data.apply_chat_template": "true",
        "reward.function": REWARD,
        "rollout.engines": case.cores,
        "rollout.prompts_per_step": case.prompts_per_step,
        "rollout.samples_per_prompt": case.samples,
        "rollout.max_new_tokens": case.max_new_tokens,
        "algorithm.name": "grpo",
        "algorithm.kl_coef": case.kl_coef,
        "optimizer.lr": case.lr,
        "optimizer.clip_grad": 1.0,
        "train.steps": case.steps,
        "train.micro_batch_tokens": case.micro_batch * (case.max_new_tokens + PROMPT),
        "stream.verify": "never",
        "output.dir": directory / "out",
        "output.tensorboard": "false",
    }
    arguments = [f"{key}={value}" for key, value in settings.items()]
    _run([sys.executable, "-m", "megarlhf", "rl", *arguments])
    lines = (directory / "out" / "metrics.jsonl").read_text().splitlines()
    records = [record for line in lines if "seconds_train" in (record := json.loads(line))]
    steps, before = [], None
    for record in records:
        parts = {
            name.removeprefix("seconds_"): value
            for name, value in record.items()
            if name.startswith("seconds_")
        }
        inside = sum(parts.values())
        # From one line to the next; nobody counts the first step.
        whole = inside if before is None else record["time"] - before
        before = record["time"]
        steps.append({**parts, "rest": whole - inside, "step": whole})
    return steps, statistics.mean(record["response_length"] for record in records)


def trl(case: Case, directory: Path) -> tuple[list[dict[str, float]], float]:
    """A run of TRL's trainer in one process with a thread on each core."""
    out = directory / "steps.json"
    _run([sys.executable, "-m", "benchmarks.trl_grpo", json.dumps(asdict(case)), str(out)])
    found = json.loads(out.read_text())
    return found["steps"], found["length"]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")


WAYS = {"megarlhf": ours, "TRL": trl}

if __name__ == "__main__":
    main()
