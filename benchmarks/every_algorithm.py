"""Every algorithm, and some layouts, on the demo's task: held-out accuracy before and after.

What a run starts from is the demo's (``megarlhf demo --dir DIR`` leaves it in ``DIR-start``): its task
and its warmed-up model. Two rows start from a model of their own, which is made and warmed up in OUT: a
mixture of experts, and the demo's model after some steps on long prompts, in which other questions stand
before the one that counts. Runs that are complete are not repeated: a table may be made bit by bit.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from megarlhf.algo import registry
from megarlhf.demo.model import make_model
from megarlhf.demo.run import CONFIGS, REWARD

STEPS = 15
OTHER_QUESTIONS = 16  # before the one that counts, in a long prompt
COMMON = (
    f"train.steps={STEPS}",
    "train.eval_every=3",
    "train.save_every=0",
    "model.parallel.tensor=1",
    "cluster.actor_ranks=1",
)
PPO = (
    "algorithm.name=ppo",
    "algorithm.kl_coef=0.01",
    "critic.optimizer.lr=1e-3",
    "rollout.samples_per_prompt=4",
    "cluster.critic_ranks=2",
)

# A row's settings; what begins with "start" is not one: which model and task it starts from.
ROWS: dict[str, tuple[str, ...]] = {
    **{name: (f"algorithm.name={name}",) for name in registry.ALGORITHMS if name != "ppo"},
    "ppo, critic at TP2": (*PPO, "critic.parallel.tensor=2"),
    "ppo, critic at PP2": (*PPO, "critic.parallel.pipeline=2"),
    "grpo, mixture of experts at EP2": (
        "start=mixture",
        "algorithm.kl_coef=0",
        "model.parallel.expert=2",
        "cluster.actor_ranks=2",
    ),
    "grpo, prompts of 190 tokens at CP2": (
        "start=long",
        "algorithm.kl_coef=0",
        "rollout.samples_per_prompt=4",
        "data.max_prompt_tokens=240",
        "model.parallel.context=2",
        "cluster.actor_ranks=2",
    ),
}
# How the starts of their own are warmed up.
WARM_UP = {
    "mixture": ("model.parallel.tensor=1", "model.parallel.expert=2", "model.aux_loss_coef=0.01"),
    "long": (
        "model.parallel.tensor=1",
        "model.parallel.context=2",
        "data.max_tokens=280",
        "train.steps=100",
        "optimizer.lr=5e-4",
    ),
}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.every_algorithm", description=__doc__
    )
    parser.add_argument("--start", type=Path, required=True, help="DIR-start of a demo")
    parser.add_argument("--seed", type=int, required=True, help="the demo's")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=(*ROWS, *WARM_UP), help="rows, or warm-ups")
    options = parser.parse_args()
    out = options.out / f"seed-{options.seed}"
    for name in options.only or ROWS:
        if name in WARM_UP:
            warm_up(name, options.start, out, options.seed)
        else:
            train(name, options.start, out, options.seed)


def train(name: str, start: Path, out: Path, seed: int) -> None:
    """One run of ``megarlhf rl``."""
    settings = [text for text in ROWS[name] if not text.startswith("start=")]
    own = [text.removeprefix("start=") for text in ROWS[name] if text.startswith("start=")]
    for kind in own:
        start = warm_up(kind, start, out, seed)
    run(
        "rl",
        f"--config={CONFIGS / 'rl.yaml'}",
        f"model.path={start / 'sft' / 'model'}",
        f"data.prompts=json@{start / 'task' / 'rl_train.jsonl'}",
        f"data.eval_prompts=json@{start / 'task' / 'heldout.jsonl'}",
        f"reward.function={REWARD}",
        f"output.dir={directory(out, name)}",
        f"train.seed={seed}",
        *COMMON,
        *settings,
    )


def warm_up(kind: str, demo: Path, out: Path, seed: int) -> Path:
    """Make a start of another kind from the demo's; returns its directory."""
    start = out / f"start-{kind}"
    if (start / "sft" / "model").exists():
        return start
    if kind == "mixture":
        base = write_mixture(start / "base", seed)
        (start / "task").symlink_to((demo / "task").resolve())
    else:
        base = demo / "sft" / "model"
        write_long_task(demo / "task", start / "task", seed)
    run(
        "sft",
        f"--config={CONFIGS / 'sft.yaml'}",
        f"model.path={base}",
        f"data.train=json@{start / 'task' / 'sft.jsonl'}",
        f"output.dir={start / 'sft'}",
        f"train.seed={seed}",
        *WARM_UP[kind],
        ranks=2,
    )
    return start


def write_mixture(path: Path, seed: int) -> Path:
    """The demo's tokenizer and a Qwen3-MoE of four experts, random weights."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    make_model(path, seed)
    (path / "model.safetensors").unlink()
    dense = json.loads((path / "config.json").read_text())
    taken = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
    taken += ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")
    taken += ("rope_parameters", "bos_token_id", "eos_token_id")
    torch.manual_seed(seed)
    model = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **{key: dense[key] for key in taken},
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=128,
            norm_topk_prob=True,
            tie_word_embeddings=False,
        )
    )
    model.save_pretrained(path)
    return path


def write_long_task(task: Path, out: Path, seed: int) -> None:
    """The same rows, other training questions before each question."""
    out.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    questions = [row["question"] for row in read_rows(task / "rl_train.jsonl")]
    for name, key in (("sft", "input"), ("rl_train", "question"), ("heldout", "question")):
        lines = []
        for row in read_rows(task / f"{name}.jsonl"):
            text = " ".join([*draw.sample(questions, OTHER_QUESTIONS), row[key]])
            lines.append(json.dumps({**row, key: text}) + "\n")
        (out / f"{name}.jsonl").write_text("".join(lines))


def read_rows(file: Path) -> list[dict[str, Any]]:
    """JSON lines."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def run(*arguments: str, ranks: int = 0) -> None:
    """``megarlhf``, under torchrun where it has ranks of its own."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
    command = [sys.executable, "-m", *(launcher if ranks else []), "megarlhf", *arguments]
    print("$", *command, flush=True)
    subprocess.run(command, check=True)


def directory(out: Path, name: str) -> Path:
    """Of a row's run."""
    return out / name.replace(",", "").replace(" ", "-")


if __name__ == "__main__":
    main()
