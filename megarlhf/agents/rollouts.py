"""All episodes of a batch: how many at a time, what is tried again, and what becomes of failures."""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Protocol

from megarlhf.agents.messages import AgentFailed
from megarlhf.agents.sampling import Asking, TurnSampler
from megarlhf.config.schema import AgentConfig
from megarlhf.data.records import Episode, Prompt, Sample
from megarlhf.errors import UserError
from megarlhf.rewards.parts import HOPELESS
from megarlhf.rewards.together import together
from megarlhf.rollout.settings import Sampling


class Player(Protocol):
    """Plays one kind of episodes."""

    async def play(self, prompt: Prompt, asking: Asking, *, alone: bool) -> Sample:
        """One episode, scored; `AgentFailed` where that is not possible."""


class Part(Protocol):
    """What has to be started before episodes and ended after them."""

    async def start(self) -> None:
        """Start it."""

    async def close(self) -> None:
        """End it, even if it was not started."""


class AgentRollouts:
    """Samples with an agent; a context manager that starts its parts and ends them.

    It has an event loop of its own, so it is called like any function.

    Args:
        config: Retries, what failures lead to, how many episodes at a time.
        where: The agent's file or command, for messages.
        player: Plays the episodes.
        sampler: Samples their turns.
        parts: What the player needs.
    """

    def __init__(
        self,
        config: AgentConfig,
        where: str,
        player: Player,
        sampler: TurnSampler,
        parts: Sequence[Part],
    ) -> None:
        self._config, self._where = config, where
        self._player, self._sampler, self._parts = player, sampler, parts
        self._runner = asyncio.Runner()
        self._playing: asyncio.Task[list[Sample]] | None = None
        self._failing: set[int] = set()  # prompts, since the last episode that worked
        self._hopeless = HOPELESS  # so many of them

    def __enter__(self) -> "AgentRollouts":
        with ExitStack() as stack:
            stack.callback(self._runner.close)
            for part in self._parts:
                stack.callback(lambda part=part: self._runner.run(part.close()))
            for part in self._parts:
                self._runner.run(part.start())
            self._exit = stack.pop_all()  # all is up: keep it until the run ends
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit.close()

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[Sample]]:
        """An episode for every sample of every prompt, scored.

        Args:
            prompts: What they begin with.
            sampling: How the model's turns are sampled; ``max_new_tokens`` is for all turns of an
                episode and what the environment writes between them.
            seeds: One a prompt; a prompt's episodes use seed, seed + 1, ... for their first turns.

        Raises:
            UserError: An episode fails again and again and ``agent.on_failure`` is ``stop``, or those
                of many prompts in a row do; shows the prompt and the traceback.
        """
        flat = self._runner.run(self._all(prompts, sampling, seeds))
        size = sampling.samples
        return [flat[begin : begin + size] for begin in range(0, len(flat), size)]

    def cancel(self) -> None:
        """Let a `generate` that another thread waits for raise `asyncio.CancelledError`."""
        if self._playing is not None:
            self._runner.get_loop().call_soon_threadsafe(self._playing.cancel)

    async def _all(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Sample]:
        self._playing = asyncio.current_task()
        # Failures are quicker than answers: a few of many prompts say nothing yet.
        self._hopeless = max(HOPELESS, len(prompts) // 2)
        running = asyncio.Semaphore(self._config.concurrency)
        return await together(
            self._episode(
                running,
                prompt,
                Asking(self._sampler, sampling, seed + nth, number, self._config.max_turn_tokens),
            )
            for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
            for nth in range(sampling.samples)
        )

    async def _episode(self, running: asyncio.Semaphore, prompt: Prompt, asking: Asking) -> Sample:
        """Begun again from its prompt where a call fails, and by itself where another's may have."""
        failures, again, alone = 0, 0, False
        async with running:
            while True:
                try:
                    sample = await self._player.play(prompt, asking, alone=alone)
                except AgentFailed as failure:
                    alone = alone or failure.innocent
                    failures += not failure.innocent
                    if failures > self._config.retries:
                        return self._given_up(prompt, failure, again)
                    again += 1
                else:
                    self._failing.clear()
                    assert sample.episode is not None
                    sample.episode = replace(sample.episode, retries=again)
                    return sample

    def _given_up(self, prompt: Prompt, failure: AgentFailed, retries: int) -> Sample:
        shown = f"{failure.reason} for the prompt {prompt.text!r:.300}"
        if failure.trace:
            shown += f"\n{failure.trace}\n"
        self._failing.add(prompt.index)
        if self._config.on_failure == "stop" or len(self._failing) >= self._hopeless:
            raise UserError(
                shown, where=self._where, fix="correct the agent, or set agent.on_failure=drop"
            ) from failure
        ended = Episode(0, "failed", retries=retries, failure=shown)
        return Sample(prompt, [], [], 0, "failed", "", episode=ended)
