"""What a model that vLLM loads from disk answers, greedily and sampled. Own process."""

import json
import os
import random
import sys
from pathlib import Path

from megarlhf.data.records import Prompt
from megarlhf.rollout.engine import VllmEngine
from megarlhf.rollout.settings import EngineSettings, Sampling, engine_environment

LONG = 56  # tokens of a prompt; 48 of them are more than vLLM takes in one pass by default (2048)


def answers_again(engine: VllmEngine, evaluation: Path) -> list[list[int]]:
    """Greedy answers to the last evaluation's prompts."""
    rows = [json.loads(line) for line in evaluation.read_text().splitlines()]
    rows = [row for row in rows if row["step"] == rows[-1]["step"]]
    prompts = [Prompt(i, row["prompt"], tuple(row["prompt_ids"])) for i, row in enumerate(rows)]
    groups = engine.generate(prompts, Sampling(1, 0.0, 1.0, -1, 12), [0] * len(prompts))
    return [group[0].response_ids for group in groups]


def samples_of_many_long_prompts(engine: VllmEngine) -> list[list[list[int]]]:
    """Two samples a prompt, each request with a seed of its own."""
    choose = random.Random(0)
    prompts = [Prompt(i, "", tuple(choose.choices(range(5, 60), k=LONG))) for i in range(48)]
    groups = engine.generate(prompts, Sampling(2, 1.0, 1.0, -1, 4), list(range(len(prompts))))
    return [[sample.response_ids for sample in group] for group in groups]


if __name__ == "__main__":
    model, evaluation, out = map(Path, sys.argv[1:])
    os.environ.update(engine_environment(1, on_gpu=False))
    settings = EngineSettings(
        model_path=str(model),
        dtype="float32",
        tensor_parallel=1,
        expert_parallel=False,
        during_generation="wait",
        can_sleep=False,
        max_length=64,
        max_sequences=128,
        gpu_memory_utilization=0.5,
        seed=0,
    )
    engine = VllmEngine(settings)
    found = {
        "again": answers_again(engine, evaluation),
        "long": samples_of_many_long_prompts(engine),
        "long again": samples_of_many_long_prompts(engine),
    }
    out.write_text(json.dumps(found))
