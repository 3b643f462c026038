"""A process of agents: ``python -m megarlhf.agents.worker``.

`process` starts it and talks with it over a socket of the two; nothing else can. It serves many
episodes at once: methods that are ``async`` share its event loop, the others have a thread each.
"""

import asyncio
import faulthandler
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from megarlhf.agents.loopback import direct
from megarlhf.agents.messages import AgentFailed, Answer, Call
from megarlhf.agents.returned import read_observation, read_step, read_verdict
from megarlhf.agents.user_agent import load_agent, load_program
from megarlhf.errors import UserError
from megarlhf.rewards.user_module import line_of

GRACE_S = 5.0  # the owner kills a process that is late; this is for one without an owner
BEAT_S = 1.0
THREADS = 4096  # they are started as they are needed
SHOWN_TRACE = 4000  # characters
_OURS = (os.path.dirname(__file__), os.path.dirname(asyncio.__file__), "concurrent/futures")
_LOADERS: dict[str, Callable[[str], Any]] = {"agent": load_agent, "program": load_program}
_READERS = {"step": read_step, "reset": read_observation, "run": read_verdict}


def main() -> None:
    """Load the file and answer calls until the owner closes the socket."""
    descriptor, kind, path, timeout_s = int(sys.argv[1]), *sys.argv[2:4], float(sys.argv[4])
    os.set_inheritable(descriptor, False)  # what the agents start must not keep it open
    os.environ.update(direct(os.environ))  # before the file makes a client
    connection = Connection(descriptor)
    try:
        loaded = _LOADERS[kind](path)
    except UserError as error:
        connection.send(error)
        return
    connection.send(None)
    asyncio.run(_Host(loaded, timeout_s, connection).serve())


class _Host:
    """The episodes of one process."""

    def __init__(self, loaded: Any, timeout_s: float, connection: Connection) -> None:
        self._loaded, self._timeout_s, self._connection = loaded, timeout_s, connection
        self._agents: dict[int, Any] = {}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="agent")
        self._sending = ThreadPoolExecutor(1)

    async def serve(self) -> None:
        """Until the owner is gone."""
        tasks = {asyncio.create_task(self._beat())}
        with ThreadPoolExecutor(1) as reading:
            while True:
                loop = asyncio.get_running_loop()
                try:
                    call = await loop.run_in_executor(reading, self._connection.recv)
                except (EOFError, OSError):
                    os._exit(0)  # not held up by threads that hang
                task = asyncio.create_task(self._answer(call))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

    async def _beat(self) -> None:
        """End a process whose loop hangs, without the interpreter's help, which it may never give."""
        while True:
            faulthandler.dump_traceback_later(self._timeout_s + GRACE_S + BEAT_S, exit=True)
            await asyncio.sleep(BEAT_S)

    async def _answer(self, call: Call) -> None:
        answer = await self._outcome(call)
        if call.method == "close" or answer.failure is not None:
            self._agents.pop(call.episode, None)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._sending, self._connection.send, answer)

    async def _outcome(self, call: Call) -> Answer:
        subject = "run" if call.method == "run" else f"Agent.{call.method}"
        running: list[Future[Any]] = []
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                value = await self._called(call, running)
            if read := _READERS.get(call.method):
                return Answer(call.episode, read(value, subject))
            return Answer(call.episode)
        except AgentFailed as failure:
            return Answer(call.episode, failure=failure)
        except BaseException as error:  # whatever it is, the owner waits for an answer
            if limit.expired():
                reason = f"{subject} did not return within {self._timeout_s:g} s"
                stuck = any(not future.done() for future in running)
                return Answer(call.episode, failure=AgentFailed(reason), stuck=stuck)
            reason = f"{subject} raised {error!r:.300}{line_of(error)}"
            return Answer(call.episode, failure=AgentFailed(reason, _trace(error)))

    async def _called(self, call: Call, running: list[Future[Any]]) -> Any:
        if call.method == "run":
            return await self._run(self._loaded, call.arguments, running)
        if call.episode not in self._agents:
            self._agents[call.episode] = await self._run(self._loaded, (), running)
        method = getattr(self._agents[call.episode], call.method, None)
        if method is None and call.method == "close":
            return None
        return await self._run(method, call.arguments, running)

    async def _run(
        self, function: Any, arguments: tuple[Any, ...], running: list[Future[Any]]
    ) -> Any:
        """Here if it is ``async``, else in a thread, which goes into ``running``."""
        if inspect.iscoroutinefunction(function):
            return await function(*arguments)
        future = self._threads.submit(function, *arguments)
        running.append(future)
        returned = await asyncio.wrap_future(future)
        return await returned if inspect.isawaitable(returned) else returned


def _trace(error: BaseException) -> str:
    """The traceback from the user's code on."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not any(part in frame.filename for part in _OURS)]
    lines = traceback.format_list(theirs) + traceback.format_exception_only(error)
    return "".join(lines)[-SHOWN_TRACE:].rstrip()


if __name__ == "__main__":
    main()
