"""Agents' files, a sampler that answers by rule, and episodes without an engine."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from megarlhf.agents.endpoint import Endpoint
from megarlhf.agents.environment import Environment
from megarlhf.agents.pool import AgentPool
from megarlhf.agents.program import CommandLine, Function, Program
from megarlhf.agents.rewards import AgentRewards
from megarlhf.agents.rollouts import AgentRollouts
from megarlhf.agents.tokens import Tokens
from megarlhf.config.schema import AgentConfig
from megarlhf.data.records import Prompt, Sample
from megarlhf.data.templates import InputTemplate
from megarlhf.rollout.settings import Sampling

STOP = 0  # the one special token
SAMPLING = Sampling(2, 1.0, 1.0, -1, 32)


class Letters:
    """A tokenizer of one id a character; ``\\0`` is the special one."""

    chat_template = "as below"

    def __call__(self, text, add_special_tokens=True, **_):
        return {"input_ids": [STOP] * add_special_tokens + [ord(c) for c in text]}

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(i) for i in ids if i != STOP or not skip_special_tokens)

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        turns = {"user": "U:{}", "assistant": "A:{}\0"}
        if any(one["role"] not in turns for one in messages):
            raise ValueError("a role that nobody knows")
        text = "".join(turns[one["role"]].format(one["content"]) for one in messages)
        return text + "A:" * add_generation_prompt


TOKENS = Tokens(Letters(), 256, special_in_prompt=False)


class Parrot:
    """Answers what `say` makes of the text so far, with the stop token; `before` it does, it waits."""

    def __init__(self, say=lambda text: "ok", before=None):
        self.say, self.before, self.asked = say, before, []

    async def sample(self, prompt, sampling, seed, number):
        self.asked.append((list(prompt.token_ids), sampling, seed, number))
        if self.before is not None:
            await self.before(prompt)
        ids = [*map(ord, self.say(TOKENS.text(prompt.token_ids))), STOP]
        cut = ids[: sampling.max_new_tokens]
        return Sample(
            prompt=prompt,
            response_ids=cut,
            rollout_logprobs=[-1.0 - i for i in range(len(cut))],
            policy_version=3,
            finish_reason="stop" if cut == ids else "length",
            text=TOKENS.text(cut),
            version_spans=[(3, len(cut))],
        )


def prompts_of(*texts):
    return [Prompt(i, text, tuple(map(ord, text)), f"label {text}") for i, text in enumerate(texts)]


@pytest.fixture
def write(tmp_path):
    def write(text, name="agent.py"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def run(config, player, parts, texts, sampler, sampling):
    prompts = prompts_of(*texts)
    where = config.file or config.program or config.command
    with AgentRollouts(config, where, player, sampler, parts) as rollouts:
        groups = rollouts.generate(prompts, sampling, [100 * i for i in range(len(prompts))])
    tally = AgentRewards().score([sample for group in groups for sample in group])
    return SimpleNamespace(groups=groups, asked=sampler.asked, tally=tally)


@pytest.fixture
def play():
    """Plays episodes with an agent's file; the groups, what was asked, and the tally."""

    def play(
        file,
        *texts,
        sampler=None,
        sampling=SAMPLING,
        has_reset=False,
        limit=64,
        template="{}",
        **settings,
    ):
        config = AgentConfig(file=file, **{"timeout_s": 20.0, **settings})
        pool = AgentPool("agent", file, config.workers, config.timeout_s)
        player = Environment(pool, TOKENS, has_reset, config.max_turns, limit, template)
        return run(config, player, [pool], texts, sampler or Parrot(), sampling)

    return play


@pytest.fixture
def play_program():
    """The same with a program, or a command."""

    def play(*texts, sampler=None, sampling=SAMPLING, limit=100, **settings):
        config = AgentConfig(**{"timeout_s": 30.0, **settings})
        endpoint = Endpoint(TOKENS, InputTemplate(Letters(), apply_chat_template=True))
        parts = [endpoint]
        if config.program is not None:
            pool = AgentPool("program", config.program, config.workers, config.timeout_s)
            parts.append(pool)
            runner = Function(pool)
        else:
            runner = CommandLine(config.command.split(), config.timeout_s, ThreadPoolExecutor(4))
        player = Program(runner, endpoint, TOKENS, config.max_turns, limit)
        return run(config, player, parts, texts, sampler or Parrot(), sampling)

    return play
