"""Sample responses to prompts, score them and keep them: nothing is trained.

``megarlhf generate`` takes the configuration of ``megarlhf rl`` (its prompts, reward and rollout) and
writes into ``output.dir``, as JSON lines in the prompts' order:

- ``samples.jsonl``: every prompt with all its responses, their rewards and how they ended;
- ``best.jsonl``: the response with the highest reward, as rows for ``sft``: input, output, reward;
- ``pairs.jsonl``: the best and the worst, where rewards differ, as rows for ``rm`` and ``dpo``: prompt,
  chosen, rejected, margin.

The last two leave out responses that were cut at ``rollout.max_new_tokens``. Their prompts are what a
model saw, templates included: they are read without a template. A run that was stopped goes on.
"""

import math
import random
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from megarlhf.cluster.engine_group import EngineGroup
from megarlhf.cluster.model_groups import ModelGroups
from megarlhf.cluster.placement import placement_of
from megarlhf.cluster.processes import Opener
from megarlhf.config import checks
from megarlhf.config.schema import RLConfig
from megarlhf.data.prompts import load_prompts
from megarlhf.data.records import Prompt, Sample
from megarlhf.errors import UserError
from megarlhf.report import jsonl
from megarlhf.report.progress import Progress
from megarlhf.rewards.sources import rewards_of
from megarlhf.rollout.settings import Sampling
from megarlhf.trainer.engine_settings import engine_settings
from megarlhf.trainer.reward_models import start_reward_models
from megarlhf.trainer.rl_inputs import (
    check_vocabulary,
    load_tokenizer,
    read_language_model,
    reward_tokenizers,
)
from megarlhf.trainer.run_directory import RunDirectory
from megarlhf.trainer.sampled_model import check_adapters, sampled_model
from megarlhf.trainer.samplers import refuse_agents
from megarlhf.trainer.stopping import StopRequest

SAMPLES, BEST, PAIRS = "samples.jsonl", "best.jsonl", "pairs.jsonl"


def generate(config: RLConfig, opener: Opener) -> dict[str, Any]:
    """Sample, score and keep; returns the run's summary."""
    refuse_agents(config, "generate")
    checks.check_rl(config)
    spec = read_language_model(config.model.path)
    check_adapters(config, spec)
    tokenizer = load_tokenizer(config.model.path)
    prompts = load_prompts(config.data, config.data.prompts, tokenizer)
    check_vocabulary((prompt.token_ids for prompt in prompts), tokenizer, spec)
    texts = {prompt.index: plain_text(prompt, tokenizer) for prompt in prompts}
    reward = rewards_of(config.reward, reward_tokenizers(config, tokenizer))
    reward.check()
    rollout = config.rollout
    with RunDirectory("generate", config) as directory:
        file = directory.path / SAMPLES
        done = {record["step"] for record in jsonl.read(file)}
        left = [prompt for prompt in prompts if prompt.index not in done]
        size = rollout.prompts_per_step
        batches = [left[begin : begin + size] for begin in range(0, len(left), size)]
        progress = Progress(len(batches), f"generate with {config.model.path}")
        if done:
            progress.note(f"going on: {len(done)} of {len(prompts)} prompts are done")
        stopped = False
        if batches:
            with ExitStack() as entered:
                with progress.phase("start", setup=True):
                    sampled = entered.enter_context(sampled_model(config))
                    entered.enter_context(reward)
                    processes = entered.enter_context(opener(placement_of(config, ["reward"])))
                    start_reward_models(config, reward.scorers, ModelGroups(config, processes))
                    engines = EngineGroup(
                        config, engine_settings(sampled), processes, progress.note
                    )
                    engines.start()
                with StopRequest() as stop:  # Ray takes the signals when it starts
                    for number, batch in enumerate(batches):
                        with progress.phase("generate"):
                            groups = engines.generate(
                                batch, _sampling(config), _seeds(config, batch)
                            )
                        with progress.phase("reward"):
                            samples = [sample for group in groups for sample in group]
                            reward.score(samples).check(len(samples))
                        for group in groups:
                            jsonl.append(file, _record(group, texts))
                        progress.step_done(number + 1, _figures(samples))
                        if stop and number + 1 < len(batches):
                            stopped = True
                            break
        summary = _select(directory.path)
        progress.table([(name, f"{value:.4g}") for name, value in summary.items()])
        return {**summary, "steps": len(jsonl.read(file)), "interrupted": stopped}


def plain_text(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    """A text that becomes the prompt's very tokens when it is tokenized without a template.

    Raises:
        UserError: There is none.
    """
    for text in (prompt.text, prompt.text.removeprefix(tokenizer.bos_token or "")):
        if tokenizer(text)["input_ids"] == list(prompt.token_ids):
            return text
    raise UserError(
        "the prompt's text, with the chat template's special tokens, is tokenized otherwise than "
        f"the template does: {prompt.text!r:.200}",
        where="data.apply_chat_template",
        fix="use data.input_template",
    )


def _sampling(config: RLConfig) -> Sampling:
    rollout = config.rollout
    return Sampling(
        samples=rollout.samples_per_prompt,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        max_new_tokens=rollout.max_new_tokens,
    )


def _seeds(config: RLConfig, prompts: Sequence[Prompt]) -> list[int]:
    """Of each prompt, whatever batch it comes in."""
    return [
        random.Random(f"{config.train.seed}-{prompt.index}").getrandbits(31) for prompt in prompts
    ]


def _record(group: Sequence[Sample], texts: dict[int, str]) -> dict[str, Any]:
    prompt = group[0].prompt
    return {
        "step": prompt.index,  # the name by which our JSON-lines files are numbered
        "prompt": texts[prompt.index],
        "label": prompt.label,
        "responses": [
            {
                "text": sample.text,
                "reward": sample.reward,
                "finish_reason": sample.finish_reason,
                "tokens": len(sample.response_ids),
            }
            for sample in group
        ],
    }


def _figures(samples: Sequence[Sample]) -> dict[str, float]:
    rewards = [sample.reward for sample in samples if sample.reward is not None]
    lengths = [len(sample.response_ids) for sample in samples]
    figures = {"response_length": sum(lengths) / len(lengths)}
    return {**figures, "reward": math.fsum(rewards) / len(rewards)} if rewards else figures


def _select(directory: Path) -> dict[str, float]:
    """Write the best responses and the pairs; returns figures over all prompts."""
    best, pairs, rewards = [], [], []
    for record in sorted(jsonl.read(directory / SAMPLES), key=lambda record: record["step"]):
        scored = [r for r in record["responses"] if r["reward"] is not None]
        rewards += [response["reward"] for response in scored]
        whole = [r for r in scored if r["finish_reason"] == "stop" and r["text"].strip()]
        if not whole:
            continue
        high, low = (choose(whole, key=lambda r: r["reward"]) for choose in (max, min))
        row = {"step": record["step"], "label": record["label"]}
        best.append(
            {**row, "input": record["prompt"], "output": high["text"], "reward": high["reward"]}
        )
        if high["reward"] > low["reward"] and high["text"] != low["text"]:
            answers = {"chosen": high["text"], "rejected": low["text"]}
            margin = high["reward"] - low["reward"]
            pairs.append({**row, "prompt": record["prompt"], **answers, "margin": margin})
    for name, rows in ((BEST, best), (PAIRS, pairs)):
        # Without rows the file is there too, and says so when it is read.
        (directory / name).write_bytes(b"")
        for row in rows:
            jsonl.append(directory / name, row)
    return {
        "responses": len(rewards),
        "mean reward": math.fsum(rewards) / max(1, len(rewards)),
        "mean best reward": math.fsum(row["reward"] for row in best) / max(1, len(best)),
        "best": len(best),
        "pairs": len(pairs),
    }
