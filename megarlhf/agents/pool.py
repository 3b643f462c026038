"""The processes of a run's agents: which of them an episode is in."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from megarlhf.agents.messages import Call
from megarlhf.agents.process import AgentProcess
from megarlhf.rewards.together import together


@dataclass(frozen=True)
class Place:
    """An episode's place in a process."""

    process: AgentProcess
    episode: int

    async def call(self, method: Literal["reset", "step", "close", "run"], *arguments: Any) -> Any:
        """Call the user's code: see `AgentProcess.call`."""
        return await self.process.call(Call(self.episode, method, arguments))


class AgentPool:
    """Several processes; one that is lost, or in which a call hangs, is replaced.

    Args:
        kind: ``agent`` or ``program``.
        path: The file.
        workers: Number of processes.
        timeout_s: The longest a call may take.
    """

    def __init__(self, kind: str, path: str, workers: int, timeout_s: float) -> None:
        self._new = partial(AgentProcess, kind, path, timeout_s)
        self._workers = workers
        self._processes: list[AgentProcess] = []
        self._all: set[AgentProcess] = set()
        self._numbers = itertools.count()

    async def start(self) -> None:
        """Start the processes, all at once."""
        self._changing, self._alone = asyncio.Lock(), asyncio.Semaphore(self._workers)
        self._processes = await together(self._started() for _ in range(self._workers))

    async def close(self) -> None:
        """End them."""
        for process in self._all:
            process.kill()

    @asynccontextmanager
    async def place(self, *, alone: bool = False) -> AsyncIterator[Place]:
        """A place for an episode, in a process of its own if wanted; given back at the end."""
        if alone:
            async with self._alone:
                process = await self._started(shared=False)
                try:
                    async with self._in(process) as place:
                        yield place
                finally:
                    self._end(process)
            return
        async with self._in(await self._emptiest()) as place:
            yield place

    @asynccontextmanager
    async def _in(self, process: AgentProcess) -> AsyncIterator[Place]:
        process.episodes += 1
        try:
            yield Place(process, next(self._numbers))
        finally:
            process.episodes -= 1
            if not process.usable and not process.episodes:
                self._end(process)

    async def _emptiest(self) -> AgentProcess:
        async with self._changing:
            for number, process in enumerate(self._processes):
                if not process.usable:
                    self._processes[number] = await self._started()
        return min(self._processes, key=lambda process: process.episodes)

    async def _started(self, *, shared: bool = True) -> AgentProcess:
        process = self._new(shared=shared)
        self._all.add(process)
        await process.start()
        return process

    def _end(self, process: AgentProcess) -> None:
        process.kill()
        self._all.discard(process)
