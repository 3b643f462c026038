"""The tables of docs/scale.md: the plan of every configuration, and of published figures.

python -m benchmarks.plans [configs] [published]; on a CPU, some minutes.
"""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from megarlhf.plan.advice import advice
from megarlhf.plan.hardware import GIB
from megarlhf.plan.making import Plan, make_plan
from megarlhf.plan.tool import Settings, subject_of

CONFIGS = Path(__file__).parents[1] / "configs"
ROLES = ("actor", "critic", "reference", "reward")
SECTIONS = ("model", "critic", "reference", "reward")

# Of OpenRLHF's table: model, GPUs, tensor and pipeline size, ranks of an engine, seconds of OpenRLHF and
# of a tuned DeepSpeed-Chat for 1,024 prompts.
SEEDS = (
    ("llama-2-7b-hf", 16, 2, 1, 1, 471, 855),
    ("llama-2-13b-hf", 32, 2, 1, 1, 609, 1529),
    ("codellama-34b-hf", 32, 4, 2, 2, 1526, 3635),
    ("llama-2-70b-hf", 32, 8, 2, 4, 4489, 10407),
)
# NeMo-RL's GRPO of Qwen3-30B-A3B on 32 H100: 1,102 tokens/s/GPU, on policy, 4,096 tokens at most, 64
# prompts of 32 samples. Mean lengths are not published: these are assumed.
QWEN = (
    "rollout.placement=colocated",
    "cluster.actor_ranks=32",
    "rollout.engines=16",
    "rollout.tensor_parallel=2",
    "rollout.gpu_memory_utilization=0.6",
    "rollout.prompts_per_step=64",
    "rollout.samples_per_prompt=32",
    "data.max_prompt_tokens=512",
    "rollout.max_new_tokens=3584",
    "model.parallel.tensor=1",
    "model.parallel.sequence=false",
    "train.micro_batch_tokens=4096",
)


def main(wanted: Sequence[str]) -> None:
    """Print what is wanted as Markdown."""
    logging.disable(logging.WARNING)
    if "configs" in wanted or not wanted:
        print(
            "| configuration | verdict | fullest GPU | a step | tokens/s/GPU | MFU | planned in |"
        )
        print("|---|---|---|---|---|---|---|")
        for row in _configs():
            print(row, flush=True)
    if "published" in wanted or not wanted:
        print(
            "| model | GPUs | this model | OpenRLHF | DSChat | verdict |\n|---|---|---|---|---|---|"
        )
        for row in _published():
            print(row, flush=True)


def _configs() -> Iterator[str]:
    for file in sorted(CONFIGS.rglob("*_*x*.yaml")):
        if file.parent.name == "lora":  # which cannot be planned yet
            continue
        begin = time.process_time()
        plan = _planned(file)
        seconds = time.process_time() - begin
        place = max(plan.places, key=lambda place: place.peak / place.memory)
        yield (
            f"| {file.relative_to(CONFIGS)} | {plan.verdict} | {place.name}: {place.peak / GIB:.1f} of "
            f"{place.memory / GIB:.1f} GiB in {place.worst} | {plan.seconds:.0f} s | "
            f"{plan.tokens_a_second:,.0f} | {plan.mfu:.0%} | {seconds:.0f} s |"
        )
        for line in advice(plan):
            print(f"  {line}", file=sys.stderr)


def _published() -> Iterator[str]:
    for model, gpus, tensor, pipeline, engine, *theirs in SEEDS:
        plan = _planned(
            CONFIGS / "ppo" / "seed_table.yaml",
            f"model.path={model}",
            f"reward.models=[{model}]",
            f"cluster.nodes={gpus // 8}",
            f"rollout.engines={gpus // engine}",
            f"rollout.tensor_parallel={engine}",
            *(f"cluster.{role}_ranks={gpus}" for role in ROLES),
            *(f"{section}.parallel.tensor={tensor}" for section in SECTIONS),
            *(f"{section}.parallel.sequence=true" for section in SECTIONS),
            *(f"{section}.parallel.pipeline={pipeline}" for section in SECTIONS),
        )
        yield (
            f"| {model} | {gpus} | {plan.seconds:.0f} s | {theirs[0]} s | {theirs[1]} s | "
            f"{plan.verdict} |"
        )
    plan = _planned(
        CONFIGS / "grpo" / "qwen3-30b-a3b_4x8h100.yaml",
        *QWEN,
        prompt_tokens=200,
        response_tokens=3000,
    )
    yield (
        f"| Qwen3-30B-A3B | 32 H100 | {plan.tokens_a_second:,.0f} tokens/s/GPU | NeMo-RL: 1,102 | | "
        f"{plan.verdict} |"
    )


def _planned(file: Path, *overrides: str, **lengths: int) -> Plan:
    return make_plan(subject_of(Settings(file, overrides, **lengths)))


if __name__ == "__main__":
    main(sys.argv[1:])
