"""Single turns from the engines: each request goes its own way, and nothing waits for the others."""

import asyncio
import itertools
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from megarlhf.cluster.engine_group import EngineGroup
from megarlhf.data.records import Prompt, Sample
from megarlhf.rollout.settings import Sampling


@dataclass
class _Turn:
    """What one episode asks.

    Attributes:
        request: What to answer, how, with what seed.
        answer: Who asked waits for it.
        asked: The engine that works on it.
    """

    request: tuple[Prompt, Sampling, int]
    answer: asyncio.Future[Sample]
    asked: Any = None


@dataclass
class _Line:
    """What one engine is asked.

    Attributes:
        new: Turns that it has not been given yet, by key.
        open: Those that it works on.
        changed: There are new ones.
        serving: The task that gives and takes, while there are any.
    """

    new: dict[int, _Turn] = field(default_factory=dict)
    open: dict[int, _Turn] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    serving: asyncio.Task[None] | None = None

    def take_back(self, member: Any) -> None:
        """What another engine than this was given is new again: that one is gone."""
        lost = {key: turn for key, turn in self.open.items() if turn.asked is not member}
        self.open = {key: turn for key, turn in self.open.items() if key not in lost}
        self.new = lost | self.new


class EngineTurns:
    """Samples turns with the engines of a run (a `TurnSampler`).

    Turns of one number go to one engine, which finds what it has read before in its prefix cache.
    Those of an engine that is lost are asked again of the one that replaces it.

    Args:
        engines: They.
        timeout_s: The longest that an engine may take until some turn is finished.
    """

    def __init__(self, engines: EngineGroup, timeout_s: float) -> None:
        self._engines, self._timeout_s = engines, timeout_s
        self._lines = {number: _Line() for number in engines.members}
        self._client, self._keys = uuid.uuid4().hex, itertools.count()
        # An engine has two calls at most, which are waited for in threads.
        self._threads = ThreadPoolExecutor(2 * len(self._lines) + 1)

    async def sample(self, prompt: Prompt, sampling: Sampling, seed: int, number: int) -> Sample:
        """See `TurnSampler.sample`."""
        engine = number % len(self._lines)
        line = self._lines[engine]
        answer: asyncio.Future[Sample] = asyncio.get_running_loop().create_future()
        line.new[next(self._keys)] = _Turn((prompt, sampling, seed), answer)
        line.changed.set()
        if line.serving is None:
            line.serving = asyncio.create_task(self._serve(engine, line))
        return await answer

    async def _serve(self, engine: int, line: _Line) -> None:
        try:
            await self._serve_until_empty(engine, line)
        except Exception as error:
            for turn in (line.open | line.new).values():
                if not turn.answer.done():
                    turn.answer.set_exception(error)
            line.open, line.new = {}, {}
        finally:
            line.serving = None

    async def _serve_until_empty(self, engine: int, line: _Line) -> None:
        collecting: asyncio.Task[list[tuple[int, Sample]] | None] | None = None
        while line.new or line.open:
            line.changed.clear()
            member = self._engines.member(engine)
            line.take_back(member)
            if line.new:
                await self._begin(engine, member, line)
            if collecting is None:
                collecting = asyncio.create_task(
                    self._call(engine, member, "collect", self._client)
                )
            changed = asyncio.create_task(line.changed.wait())
            await asyncio.wait((collecting, changed), return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            if collecting.done():
                for key, sample in collecting.result() or ():
                    turn = line.open.pop(key, None)
                    if turn and not turn.answer.done():  # who asked may have been given up
                        turn.answer.set_result(sample)
                collecting = None

    async def _begin(self, engine: int, member: Any, line: _Line) -> None:
        new, line.new = line.new, {}
        for turn in new.values():
            turn.asked = member
        line.open |= new
        turns = [(key, *turn.request) for key, turn in new.items()]
        await self._call(engine, member, "begin", self._client, turns)

    async def _call(self, engine: int, member: Any, method: str, *arguments: Any) -> Any:
        """What an engine answers; None where it is lost: then another has taken its place."""
        call = getattr(member, method).remote(*arguments)
        loop = asyncio.get_running_loop()
        found, lost = await loop.run_in_executor(
            self._threads, self._engines.failures_of, {engine: call}, self._timeout_s
        )
        if engine in found:
            return found[engine]
        # In this thread, which samples; meanwhile the episodes stand still.
        self._engines.repair(lost, {engine: member})
        return None
