"""``megarlhf generate``: sample responses to prompts, score them and keep them; nothing is trained.

It takes the configuration of ``megarlhf rl`` (its prompts, reward and rollout). What it writes is in
`generated_files`. A run that was stopped goes on.
"""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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
from megarlhf.report.progress import Progress
from megarlhf.rewards.mix import Rewards
from megarlhf.rewards.sources import rewards_of
from megarlhf.trainer.engine_settings import engine_settings, rollout_sampling
from megarlhf.trainer.generated_files import GeneratedFiles
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


@dataclass(frozen=True)
class GenerationInputs:
    """What `prepare` found.

    Attributes:
        prompts: To respond to.
        texts: What is written of each prompt, by its index: see `plain_text`.
        reward: What scores the responses; checked, not started.
    """

    prompts: Sequence[Prompt]
    texts: dict[int, str]
    reward: Rewards


def generate(config: RLConfig, opener: Opener) -> dict[str, Any]:
    """Sample, score and keep; returns the run's summary."""
    inputs = prepare(config)  # everything wrong with the input is found here
    with RunDirectory("generate", config) as directory:
        files = GeneratedFiles(directory.path, inputs.texts)
        done = files.go_on()
        batches = _batches(config, [one for one in inputs.prompts if one.index not in done])
        progress = Progress(len(batches), f"generate with {config.model.path}")
        if done:
            progress.note(f"going on: {len(done)} of {len(inputs.prompts)} prompts are done")
        interrupted = False
        if batches:
            with _engines(config, inputs.reward, opener, progress) as engines:
                interrupted = _answer(config, inputs.reward, engines, batches, files, progress)
        summary = files.select()
        progress.table([(name, f"{value:.4g}") for name, value in summary.items()])
        return {**summary, "steps": len(files.done()), "interrupted": interrupted}


def prepare(config: RLConfig) -> GenerationInputs:
    """Read and check the configuration, the model's description, the prompts and the reward.

    Raises:
        UserError: Anything is missing, malformed or does not fit together.
    """
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
    return GenerationInputs(prompts, texts, reward)


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


@contextmanager
def _engines(
    config: RLConfig, reward: Rewards, opener: Opener, progress: Progress
) -> Iterator[EngineGroup]:
    """The engines, once they and all that scores are up."""
    with ExitStack() as stack:
        with progress.phase("start", setup=True):
            sampled = stack.enter_context(sampled_model(config))
            stack.enter_context(reward)
            processes = stack.enter_context(opener(placement_of(config, ["reward"])))
            start_reward_models(config, reward.scorers, ModelGroups(config, processes))
            engines = EngineGroup(config, engine_settings(sampled), processes, progress.note)
            engines.start()
        yield engines


def _answer(
    config: RLConfig,
    reward: Rewards,
    engines: EngineGroup,
    batches: Sequence[Sequence[Prompt]],
    files: GeneratedFiles,
    progress: Progress,
) -> bool:
    """Sample, score and write batch after batch; returns whether a signal ended that early."""
    sampling = rollout_sampling(config.rollout)
    with StopRequest() as stop:  # Ray takes the signals when it starts
        for number, batch in enumerate(batches, start=1):
            with progress.phase("generate"):
                groups = engines.generate(batch, sampling, _seeds(config, batch))
            with progress.phase("reward"):
                samples = [sample for group in groups for sample in group]
                reward.score(samples).check(len(samples))
            files.append(groups)
            progress.step_done(number, _figures(samples))
            if stop and number < len(batches):
                return True
    return False


def _batches(config: RLConfig, prompts: Sequence[Prompt]) -> list[Sequence[Prompt]]:
    size = config.rollout.prompts_per_step
    return [prompts[begin : begin + size] for begin in range(0, len(prompts), size)]


def _seeds(config: RLConfig, prompts: Sequence[Prompt]) -> list[int]:
    """Of each prompt, whatever batch it comes in."""
    return [
        random.Random(f"{config.train.seed}-{prompt.index}").getrandbits(31) for prompt in prompts
    ]


def _figures(samples: Sequence[Sample]) -> dict[str, float]:
    rewards = [sample.reward for sample in samples if sample.reward is not None]
    lengths = [len(sample.response_ids) for sample in samples]
    figures = {"response_length": sum(lengths) / len(lengths)}
    return {**figures, "reward": math.fsum(rewards) / len(rewards)} if rewards else figures
