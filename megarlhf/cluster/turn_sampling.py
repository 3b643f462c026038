"""Single turns from the engines: each request goes its own way, and nothing waits for the others."""

import asyncio
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from megarlhf.cluster.engine_group import EngineGroup
from megarlhf.cluster.lost_engines import failures_of
from megarlhf.data.records import Prompt, Sample
from megarlhf.rollout.settings import Sampling

Turn = tuple[Prompt, Sampling, int]  # what to answer, how, with what seed


@dataclass
class _Line:
    """What one engine is asked.

    Attributes:
        new: Turns, with who waits for them, that it has not been given yet, by key.
        open: Those that it works on.
        changed: There are new ones.
        serving: The task that gives and takes, while there are any.
    """

    new: dict[int, tuple[Turn, asyncio.Future[Sample]]] = field(default_factory=dict)
    open: dict[int, tuple[Turn, asyncio.Future[Sample]]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    serving: asyncio.Task[None] | None = None


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
        self._keys = itertools.count()
        # An engine has two calls at most, which are waited for in threads.
        self._threads = ThreadPoolExecutor(2 * len(self._lines) + 1)
        self._replacing = asyncio.Lock()

    async def sample(self, prompt: Prompt, sampling: Sampling, seed: int, number: int) -> Sample:
        """See `TurnSampler.sample`."""
        engine = number % len(self._lines)
        line = self._lines[engine]
        answer: asyncio.Future[Sample] = asyncio.get_running_loop().create_future()
        line.new[next(self._keys)] = (prompt, sampling, seed), answer
        line.changed.set()
        if line.serving is None:
            line.serving = asyncio.create_task(self._serve(engine, line))
        return await answer

    async def _serve(self, engine: int, line: _Line) -> None:
        try:
            await self._serve_until_empty(engine, line)
        except Exception as error:
            for _, answer in (line.open | line.new).values():
                if not answer.done():
                    answer.set_exception(error)
            line.open, line.new = {}, {}
        finally:
            line.serving = None

    async def _serve_until_empty(self, engine: int, line: _Line) -> None:
        collecting: asyncio.Task[list[tuple[int, Sample]] | None] | None = None
        while line.new or line.open:
            line.changed.clear()
            if line.new:
                new, line.new = line.new, {}
                line.open |= new
                turns = [(key, *turn) for key, (turn, _) in new.items()]
                await self._call(engine, line, "begin", turns)
            if collecting is None and line.open:
                collecting = asyncio.create_task(self._call(engine, line, "collect"))
            if collecting is None:
                continue
            changed = asyncio.create_task(line.changed.wait())
            await asyncio.wait((collecting, changed), return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            if collecting.done():
                for key, sample in collecting.result() or ():
                    _, answer = line.open.pop(key)
                    if not answer.done():  # who asked may have been given up
                        answer.set_result(sample)
                collecting = None

    async def _call(self, engine: int, line: _Line, method: str, *arguments: Any) -> Any:
        """What the engine answers; None where it is lost, and all its turns are new again."""
        member = self._engines.members[engine]
        call = getattr(member, method).remote(*arguments)
        loop = asyncio.get_running_loop()
        found, lost = await loop.run_in_executor(
            self._threads, failures_of, {engine: call}, self._timeout_s
        )
        if engine in found:
            return found[engine]
        async with self._replacing:
            if self._engines.members[engine] is member:  # the other call may have been quicker
                await loop.run_in_executor(
                    self._threads, self._engines.replace, lost, "while sampling"
                )
                line.new, line.open = line.open | line.new, {}
        return None
