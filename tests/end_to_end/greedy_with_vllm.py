"""Answer an evaluation's prompts again with a model that vLLM loads from disk. Own process."""

import json
import os
import sys
from pathlib import Path

from megarlhf.data.records import Prompt
from megarlhf.rollout.engine import VllmEngine
from megarlhf.rollout.settings import Sampling, engine_environment
from tests.rollout.engine_process import settings_of

if __name__ == "__main__":
    model, evaluation, out = map(Path, sys.argv[1:])
    os.environ.update(engine_environment(1, on_gpu=False))
    answers = [json.loads(line) for line in evaluation.read_text().splitlines()]
    answers = [answer for answer in answers if answer["step"] == answers[-1]["step"]]
    engine = VllmEngine(settings_of(model))
    prompts = [
        Prompt(index, answer["prompt"], tuple(answer["prompt_ids"]))
        for index, answer in enumerate(answers)
    ]
    groups = engine.generate(prompts, Sampling(1, 0.0, 1.0, -1, 12), [0] * len(prompts))
    out.write_text(json.dumps([group[0].response_ids for group in groups]))
