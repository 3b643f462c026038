"""Score a batch in parts; a part that fails is repeated, then taken apart."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import SystemRandom

from megarlhf.rewards.scorer import Batch, CallFailed, Scores, ScoringFailed
from megarlhf.rewards.together import together

LONGEST_PAUSE_S = 30.0
# Responses to so many prompts in a row failing, each by itself, again and again: it is not them.
HOPELESS = 5
_random = SystemRandom()  # leaves the run's seeded generators alone


@dataclass(frozen=True)
class Policy:
    """How a batch is cut into calls, and what a failing one leads to.

    Attributes:
        batch_size: Responses in a call, at most.
        retries: How often a call is repeated.
        pause_s: Before the first repetition, on average; doubles with each.
        stop: Raise at the first response that cannot be scored.
    """

    batch_size: int
    retries: int
    pause_s: float
    stop: bool


async def score_in_parts(
    batch: Batch, call: Callable[[Batch], Awaitable[Scores]], slots: int, policy: Policy
) -> Scores:
    """Deal a batch out to calls of a function or server.

    A call that fails is repeated where that may help (`CallFailed.again`); then every response in
    it is tried by itself, so that one bad response costs no others and is named.

    Args:
        batch: What to score.
        call: Scores a part, or raises `CallFailed`; limits by itself how many run at a time.
        slots: How many calls can run at a time.
        policy: Sizes and retries.

    Raises:
        ScoringFailed: A response cannot be scored and ``policy.stop`` is set, or none can.
    """
    run = _Run(batch, call, policy)
    size = max(1, min(policy.batch_size, math.ceil(len(batch) / slots)))
    await run.settle_all(range(0, len(batch), size))
    return run.outcome()


class _Run:
    """One batch on its way."""

    def __init__(
        self, batch: Batch, call: Callable[[Batch], Awaitable[Scores]], policy: Policy
    ) -> None:
        self._batch, self._call, self._policy = batch, call, policy
        self._scored: dict[int, Scores] = {}  # by the part's start
        self._failures: dict[int, str] = {}
        self._failing: set[str] = set()  # prompts, since the last call that worked
        self._retries = 0

    def outcome(self) -> Scores:
        """What is known, in the batch's order whichever call came back first."""
        whole = Scores.none_yet(len(self._batch))
        for start, part in sorted(self._scored.items()):
            whole.put(start, part)
        whole.failures, whole.retries = self._failures, self._retries
        return whole

    async def settle_all(self, starts: range) -> None:
        """Settle the parts that begin at ``starts``; the first that raises ends the others."""
        stops = (min(start + starts.step, starts.stop) for start in starts)
        await together(map(self._settle, starts, stops))

    async def _settle(self, start: int, stop: int) -> None:
        try:
            self._scored[start] = await self._repeated(self._batch.part(start, stop))
            self._failing.clear()
        except CallFailed as failure:
            if stop - start > 1 and failure.split:
                await self.settle_all(range(start, stop))
            else:
                self._give_up(start, stop, failure)

    async def _repeated(self, part: Batch) -> Scores:
        for attempt in range(self._policy.retries):
            try:
                return await self._call(part)
            except CallFailed as failure:
                if len(part) > 1 and failure.split and not failure.again:
                    raise
            self._retries += 1
            await asyncio.sleep(_pause(self._policy.pause_s, attempt))
        return await self._call(part)

    def _give_up(self, start: int, stop: int, failure: CallFailed) -> None:
        if stop - start == 1:
            self._failing.add(self._batch.prompts[start])
        if self._policy.stop or len(self._failing) >= HOPELESS:
            raise ScoringFailed(start, failure.reason) from failure
        self._failures |= dict.fromkeys(range(start, stop), failure.reason)


def _pause(base: float, attempt: int) -> float:
    """Exponential, and apart from others that failed at the same moment."""
    return min(base * 2**attempt, LONGEST_PAUSE_S) * _random.uniform(0.5, 1.5)
