"""How an episode asks for the model's next answer."""

import random
from dataclasses import dataclass, replace
from typing import Protocol

from megarlhf.data.records import Prompt, Sample
from megarlhf.rollout.settings import Sampling


class TurnSampler(Protocol):
    """Samples single answers; requests wait for themselves only, not for each other."""

    async def sample(self, prompt: Prompt, sampling: Sampling, seed: int, number: int) -> Sample:
        """One response.

        Args:
            prompt: All tokens so far.
            sampling: How, with ``samples`` 1.
            seed: Of the request.
            number: The prompt's place in the batch. Those of one number go to one engine, which
                finds what it has read before in its cache.
        """


@dataclass(frozen=True)
class Asking:
    """How one episode's turns are sampled.

    Attributes:
        sampler: Who is asked.
        sampling: The run's settings; ``max_new_tokens`` is the limit of all turns together.
        seed: Of the first turn.
        number: See `TurnSampler.sample`.
        max_turn_tokens: Of one turn; None: no limit of its own.
    """

    sampler: TurnSampler
    sampling: Sampling
    seed: int
    number: int
    max_turn_tokens: int | None

    async def answer(self, token_ids: list[int], turn: int, room: int) -> Sample:
        """The model's answer.

        Args:
            token_ids: To these.
            turn: Its number in the episode, from 1.
            room: How many tokens it may have, at most.
        """
        longest = room if self.max_turn_tokens is None else min(room, self.max_turn_tokens)
        sampling = replace(self.sampling, samples=1, max_new_tokens=longest)
        prompt = Prompt(self.number, "", tuple(token_ids))
        return await self.sampler.sample(prompt, sampling, self._seed(turn), self.number)

    def _seed(self, turn: int) -> int:
        if turn == 1:  # that of a response without an agent
            return self.seed
        return random.Random(f"{self.seed}-{turn}").getrandbits(31)
