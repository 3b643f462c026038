"""The tables of docs/scale.md: the plan of every configuration, and of published figures.

python -m benchmarks.plans configs [NAME ...] | published; on a CPU, some minutes. Of the configurations
those whose path has one of the names in it, such as ppo/.
"""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from megarlhf.plan.advice import advice
from megarlhf.plan.hardware import GIB
from megarlhf.plan.making import make_plan
from megarlhf.plan.result import Plan
from megarlhf.plan.tool import Settings, subject_of

CONFIGS = Path(__file__).parents[1] / "configs"
ROLES = ("actor", "critic", "reference", "reward")
SECTIONS = ("model", "critic", "reference", "reward")
CONFIG_COLUMNS = (
    "configuration | verdict | fullest GPU of the trainer | engines | a step | tokens/s/GPU | "
    "MFU of training | planned in"
)
SEED_COLUMNS = "model | GPUs | predicted | OpenRLHF | tuned DSChat | predicted / OpenRLHF"
CHECK_COLUMNS = (
    "version, model | GPUs | published | predicted | error | generating | verdict | "
    "tokens/s/GPU published | predicted"
)
LAYOUT = ("tensor", "pipeline", "context", "expert")

# Of OpenRLHF's table: model, GPUs, tensor and pipeline size, ranks of an engine, seconds of OpenRLHF and
# of a tuned DeepSpeed-Chat for 1,024 prompts.
SEEDS = (
    ("llama-2-7b-hf", 16, 2, 1, 1, 471, 855),
    ("llama-2-13b-hf", 32, 2, 1, 1, 609, 1529),
    ("codellama-34b-hf", 32, 4, 2, 2, 1526, 3635),
    ("llama-2-70b-hf", 32, 8, 2, 4, 4489, 10407),
)
# NVIDIA NeMo-RL's tables of GRPO on H100 (docs/about/performance-summary.md) and the recipes of those
# runs (examples/configs/recipes/llm/performance): on policy, Megatron in bf16, 2,048 samples a rollout
# (512 of the 235B model), 32 a prompt, 512 an update, packs as long as the longest sequence, a KL
# penalty, engines by turns with 60% of the memory. Version, model, GPUs, longest and mean sequence
# (prompt included), samples, ranks of an engine, recomputing, the trainer's layout, tokens/s/GPU,
# seconds a step. How long prompts are is assumed, and the recomputing of v0.6's run: without any, as its
# recipe has it, it would not fit here (99 GiB). Their experts are not cut by tensor parallelism, so
# that of the last one 16 ranks share them, here 8.
NEMO = (
    ("v0.4", "llama-3.1-8b-instruct", 16, 4096, 1060, 2048, 1, "full", {"pipeline": 2}, 1562, 97.7),
    (
        "v0.4",
        "qwen3-30b-a3b",
        32,
        4096,
        3154,
        2048,
        4,
        "none",
        {"tensor": 2, "expert": 8},
        925,
        225,
    ),
    ("v0.6", "qwen3-30b-a3b", 32, 4096, 3203, 2048, 2, "full", {"expert": 8}, 1102, 192),
    ("v0.4", "qwen3-32b", 32, 4096, 3206, 2048, 4, "none", {"tensor": 4, "pipeline": 4}, 540, 393),
    (
        *("v0.4", "qwen3-235b-a22b", 128, 8192, 5671, 512, 16, "full"),
        *({"tensor": 2, "context": 2, "expert": 8, "pipeline": 8}, 45.7, 506),
    ),
)
UPDATE, PROMPT = 512, 150  # samples an update; tokens of a prompt, which are assumed


def main(table: str = "configs", *names: str) -> None:
    """Print a table as Markdown."""
    logging.disable(logging.WARNING)
    if table == "configs":
        _show(CONFIG_COLUMNS, _configs(names))
    else:
        _show(SEED_COLUMNS, _published())
        _show(CHECK_COLUMNS, _checks())


def _show(columns: str, rows: Iterator[str]) -> None:
    print(f"| {columns} |\n|{'---|' * len(columns.split(' | '))}")
    for row in rows:
        print(row, flush=True)
    print()


def _configs(names: Sequence[str]) -> Iterator[str]:
    files = sorted(CONFIGS.rglob("*_*x*.yaml"))
    for file in (file for file in files if any(name in str(file) for name in names or [""])):
        begin = time.process_time()
        plan = _planned(file)
        seconds = time.process_time() - begin
        trainer = [place for place in plan.places if place.name != "engines"]
        place = max(trainer, key=lambda place: place.peak / place.memory)
        yield (
            f"| {file.relative_to(CONFIGS).with_suffix('')} | {plan.verdict} | "
            f"{place.name}: {place.peak / GIB:.1f} of {place.memory / GIB:.1f} GiB, {place.worst} | "
            f"{_engines(plan)} | {plan.seconds:.0f} s | {plan.tokens_a_second:,.0f} | {plan.mfu:.0%} | "
            f"{seconds:.0f} s |"
        )
        for line in advice(plan):
            print(f"  {line}", file=sys.stderr)


def _engines(plan: Plan) -> str:
    if plan.sampling is None:
        return ""
    engines = plan.sampling.engines
    return f"{engines.count} x {engines.ranks}, {engines.running} sequences each"


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
            f"{plan.seconds / theirs[0]:.2f} |"
        )


def _checks() -> Iterator[str]:
    for (
        version,
        model,
        gpus,
        longest,
        mean,
        samples,
        ranks,
        recompute,
        layout,
        rate,
        seconds,
    ) in NEMO:
        plan = _planned(
            CONFIGS / "grpo" / "llama3-8b_1x8h100_hybrid.yaml",
            f"model.path={model}",
            f"model.recompute={recompute}",
            *(f"model.parallel.{name}={layout.get(name, 1)}" for name in LAYOUT),
            f"model.parallel.sequence={str(layout.get('tensor', 1) > 1).lower()}",
            f"algorithm.updates_per_rollout={samples // UPDATE}",
            f"cluster.nodes={gpus // 8}",
            f"cluster.actor_ranks={gpus}",
            f"rollout.engines={gpus // ranks}",
            f"rollout.tensor_parallel={ranks}",
            f"rollout.prompts_per_step={samples // 32}",
            "rollout.samples_per_prompt=32",
            "rollout.gpu_memory_utilization=0.6",
            "rollout.share_prompts=false",  # theirs runs a prompt for each sample
            f"data.max_prompt_tokens={PROMPT}",
            f"rollout.max_new_tokens={longest - PROMPT}",
            f"train.micro_batch_tokens={longest}",
            prompt_tokens=PROMPT,
            response_tokens=mean - PROMPT,
        )
        error = plan.seconds / seconds - 1
        yield (
            f"| {version}, {model} | {gpus} | {seconds:g} s | {plan.seconds:.0f} s | {error:+.0%} | "
            f"{plan.spans[0].seconds:.0f} s | {plan.verdict} | {rate:,} | {plan.tokens_a_second:,.0f} |"
        )


def _planned(file: Path, *overrides: str, **lengths: int) -> Plan:
    return make_plan(subject_of(Settings(file, overrides, **lengths)))


if __name__ == "__main__":
    main(*sys.argv[1:])
