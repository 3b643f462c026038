"""Where a run's samples and their rewards come from: plain responses, or an agent's episodes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Protocol

from megarlhf.agents.rewards import AgentRewards
from megarlhf.agents.rollouts import AgentRollouts
from megarlhf.agents.sources import agent_rollouts, check_loads
from megarlhf.cluster.engine_group import EngineGroup
from megarlhf.cluster.turn_sampling import EngineTurns
from megarlhf.config.schema import RLConfig
from megarlhf.data.records import Prompt, Sample
from megarlhf.errors import UserError
from megarlhf.rewards.mix import Rewards
from megarlhf.rewards.sources import rewards_of
from megarlhf.rollout.settings import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Sampler(Protocol):
    """Samples for prompts."""

    def cancel(self) -> None:
        """Let a `generate` that another thread waits for raise, once the engines are ended too."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[Sample]]:
        """For each prompt ``sampling.samples`` samples, of seeds that follow on the prompt's."""


@contextmanager
def samplers_of(
    config: RLConfig, tokenizer: "PreTrainedTokenizerBase", vocab_size: int, engines: EngineGroup
) -> Iterator[tuple[Sampler, Sampler]]:
    """Yields the samplers of rollouts and of evaluations: the engines, or an agent that asks them.

    Where rollouts are made ahead, in a thread of their own, an agent gets one of each: neither may be
    used by the other's thread.
    """
    if not config.agent.is_set:
        yield engines, engines
        return
    with ExitStack() as stack:

        def started() -> AgentRollouts:
            turns = EngineTurns(engines, config.rollout.timeout_s)
            return stack.enter_context(agent_rollouts(config, tokenizer, vocab_size, turns))

        rollouts = started()
        yield rollouts, started() if config.rollout.async_steps else rollouts


def scoring_of(
    config: RLConfig, tokenizers: "Mapping[str, PreTrainedTokenizerBase]"
) -> Rewards | AgentRewards:
    """What gives the samples their rewards; checked, not started.

    Args:
        config: The run's configuration.
        tokenizers: See `rewards_of`.

    Raises:
        UserError: A file does not load, or a server does not answer.
    """
    if config.agent.is_set:
        check_loads(config)
        return AgentRewards()
    reward = rewards_of(config.reward, tokenizers)
    reward.check()
    return reward


def refuse_agents(config: RLConfig, command: str) -> None:
    """Refuse an agent's settings, for a command that samples single responses.

    Raises:
        UserError: The configuration has an agent.
    """
    if config.agent.is_set:
        raise UserError(
            f"megarlhf {command} has no agents", where="agent", fix="remove agent.*, set reward.*"
        )
