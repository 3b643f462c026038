"""The tables of docs/tuning.md: what a change of the configuration does to memory and time, planned.

python -m benchmarks.tuning_table; on a CPU, a minute or two.
"""

import logging
from pathlib import Path

from megarlhf.plan.hardware import GIB
from megarlhf.plan.making import make_plan
from megarlhf.plan.result import Plan
from megarlhf.plan.tool import Settings, subject_of

CONFIGS = Path(__file__).parents[1] / "configs"
HYBRID, SEPARATE = "grpo/llama3-8b_1x8h100_hybrid", "grpo/llama3-8b_1x8h100"
SELECTIVE = "model.recompute=selective"
ROWS = (
    (HYBRID,),
    (HYBRID, SELECTIVE),
    (HYBRID, "model.recompute=none"),
    (HYBRID, SELECTIVE, "train.micro_batch_tokens=32768"),
    (HYBRID, SELECTIVE, "train.micro_batch_tokens=8192"),
    (HYBRID, SELECTIVE, "model.parallel.sequence=false"),
    (HYBRID, SELECTIVE, "model.parallel.tensor=2"),
    (HYBRID, SELECTIVE, "model.parallel.tensor=8"),
    (HYBRID, SELECTIVE, "model.parallel.tensor=2", "model.parallel.pipeline=2"),
    (HYBRID, SELECTIVE, "model.parallel.overlap=true"),
    (HYBRID, SELECTIVE, "algorithm.kl_coef=0"),
    (HYBRID, SELECTIVE, "rollout.share_prompts=false"),
    (SEPARATE,),
    (SEPARATE, "rollout.async_steps=1"),
    ("ppo/llama3-8b_1x8h100_hybrid",),
    ("grpo/qwen3-30b-a3b_4x8h100",),
    ("ppo/llama2-7b_1x4rtx4090",),
    (
        *("ppo/llama2-7b_1x4rtx4090", "optimizer.offload=none"),
        "critic.optimizer.offload=none",
    ),
    ("ppo/llama3-70b_2x8a100-80g",),
    (
        *("ppo/llama3-70b_2x8a100-80g", "optimizer.offload=none"),
        "critic.optimizer.offload=none",
    ),
)
COLUMNS = "changed | peak | activations | training | a step | verdict | host, a GPU | parts"


def main() -> None:
    """Print a row for each change as Markdown."""
    logging.disable(logging.WARNING)
    print(f"| {COLUMNS} |\n|{'---|' * len(COLUMNS.split(' | '))}")
    for name, *changes in ROWS:
        file = CONFIGS / f"{name}.yaml"
        print(
            _row([name, *changes], make_plan(subject_of(Settings(file, tuple(changes))))),
            flush=True,
        )


def _row(changes: list[str], plan: Plan) -> str:
    actor = next(place for place in plan.places if "train" in place.phases)
    kinds = actor.phases["train"]
    training = [span for span in plan.spans if span.name == "train actor"]
    spans = (plan.spans[0], *training)  # of the rollout, and of training
    parts = "; ".join(
        f"{span.name}: "
        + ", ".join(
            f"{part} {seconds:.1f}" for part, seconds in span.parts.items() if seconds > 0.05
        )
        for span in spans
    )
    return (
        f"| {' '.join(changes)} | {sum(kinds.values()) / GIB:.1f} GiB | "
        f"{kinds.get('activations', 0) / GIB:.1f} | {sum(s.seconds for s in training):.1f} s | "
        f"{plan.seconds:.0f} s | {plan.verdict} | {actor.host / GIB:.1f} GiB | {parts} |"
    )


if __name__ == "__main__":
    main()
