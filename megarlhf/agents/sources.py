"""From the section ``agent`` of a configuration to what plays its episodes."""

import shlex
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from megarlhf.agents.environment import Environment
from megarlhf.agents.pool import AgentPool
from megarlhf.agents.rollouts import AgentRollouts
from megarlhf.agents.sampling import TurnSampler
from megarlhf.agents.tokens import Tokens
from megarlhf.agents.user_agent import load_agent, load_program
from megarlhf.config.schema import PromptDataConfig, RLConfig
from megarlhf.data.templates import InputTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_loads(config: RLConfig) -> None:
    """The agent's file loads, which is known before anything is started.

    Raises:
        UserError: It does not, or defines not what it should.
    """
    if config.agent.file is not None:
        load_agent(config.agent.file)
    if config.agent.program is not None:
        load_program(config.agent.program)


def agent_rollouts(
    config: RLConfig, tokenizer: "PreTrainedTokenizerBase", vocab_size: int, sampler: TurnSampler
) -> AgentRollouts:
    """What a configuration with an agent samples with; not started.

    Args:
        config: The run's.
        tokenizer: The actor's.
        vocab_size: Embeddings of the actor.
        sampler: Samples turns.
    """
    agent, data = config.agent, config.data
    tokens = Tokens(tokenizer, vocab_size, special_in_prompt=not data.apply_chat_template)
    if agent.file is not None:
        pool = AgentPool("agent", agent.file, agent.workers, agent.timeout_s)
        player = Environment(
            pool,
            tokens,
            has_reset=hasattr(load_agent(agent.file), "reset"),
            max_turns=agent.max_turns,
            max_prompt_tokens=data.max_prompt_tokens,
            template=agent.observation_template or "{}",
        )
        return AgentRollouts(agent, agent.file, player, sampler, [pool])
    return _program_rollouts(config, tokens, sampler)


def _program_rollouts(config: RLConfig, tokens: Tokens, sampler: TurnSampler) -> AgentRollouts:
    from megarlhf.agents.endpoint import Endpoint  # the HTTP server, only where wanted
    from megarlhf.agents.program import CommandLine, Function, Program

    agent, data = config.agent, config.data
    endpoint = Endpoint(tokens, _template(data, tokens))
    pool: list[AgentPool] = []
    if agent.program is not None:
        where = agent.program
        pool = [AgentPool("program", agent.program, agent.workers, agent.timeout_s)]
        runner = Function(pool[0])
    else:
        assert agent.command is not None
        where = agent.command
        runner = CommandLine(
            shlex.split(agent.command), agent.timeout_s, ThreadPoolExecutor(agent.concurrency)
        )
    player = Program(
        runner,
        endpoint,
        tokens,
        max_turns=agent.max_turns,
        max_length=data.max_prompt_tokens + config.rollout.max_new_tokens,
    )
    return AgentRollouts(agent, where, player, sampler, [endpoint, *pool])


def _template(data: PromptDataConfig, tokens: Tokens) -> InputTemplate | None:
    if not (data.tokenizer_chat_template or tokens.tokenizer.chat_template):
        return None
    return InputTemplate(
        tokens.tokenizer, apply_chat_template=True, chat_template=data.tokenizer_chat_template
    )
