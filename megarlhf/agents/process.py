"""The owner's side of a process of agents: start it, call it for many episodes at once, kill it."""

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from megarlhf.agents.messages import AgentFailed, Answer, Call
from megarlhf.agents.worker import BEAT_S, GRACE_S
from megarlhf.errors import UserError
from megarlhf.rewards.user_process import LOAD_TIMEOUT_S, UserProcess


class AgentProcess:
    """One process that has loaded an agent's file.

    It minds the time of its calls itself. Where it does not answer at all it is killed, which ends
    all its episodes.

    Args:
        kind: ``agent`` or ``program``.
        path: The file.
        timeout_s: The longest a call may take.
        shared: Several episodes may be in it: if it is lost, nobody knows which one's doing it was.

    Attributes:
        usable: New episodes may begin here.
        episodes: How many there are.
    """

    def __init__(self, kind: str, path: str, timeout_s: float, *, shared: bool) -> None:
        self._kind, self._path, self._timeout_s = kind, path, timeout_s
        self._shared = shared
        self.usable, self.episodes = True, 0
        self._alive = True
        self._waiting: dict[int, asyncio.Future[Answer]] = {}

    async def start(self) -> None:
        """Start the process and let it load the file.

        Raises:
            UserError: The file does not load there.
        """
        self._loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[UserError | None] = self._loop.create_future()
        self._process = UserProcess(
            "megarlhf.agents.worker", self._kind, self._path, str(self._timeout_s)
        )
        # Sends in order, and not from the loop: a process that hangs does not read.
        self._sending = ThreadPoolExecutor(1)
        threading.Thread(target=self._read, args=(self._process.connection,), daemon=True).start()
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                error = await self._loaded
        except TimeoutError:
            error = UserError(
                f"the file did not load within {LOAD_TIMEOUT_S:g} s", where=self._path
            )
        except asyncio.CancelledError:
            self.kill()
            raise
        if error is not None:
            self.kill()
            raise error

    async def call(self, call: Call) -> Any:
        """What the user's code returned.

        Raises:
            AgentFailed: It raised, hung, or took the process with it.
        """
        if not self._alive:
            raise AgentFailed("its process ended", innocent=self._shared)
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting[call.episode] = answer
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s + 2 * (GRACE_S + BEAT_S)):
                with contextlib.suppress(OSError):  # a process that is gone: `_lost` says so
                    send = self._process.connection.send
                    await self._loop.run_in_executor(self._sending, send, call)
                found = await answer
        except TimeoutError:
            self.kill()
            seconds = time.monotonic() - began
            reason = f"its process did not answer within {seconds:.0f} s"
            raise AgentFailed(reason, innocent=self._shared) from None
        finally:
            self._waiting.pop(call.episode, None)
        if found.stuck:
            self.usable = False
        if found.failure is not None:
            raise found.failure
        return found.value

    def kill(self) -> None:
        """End the process and all that it started."""
        if self._alive:
            self._alive = self.usable = False
            self._process.kill()
            self._sending.shutdown(wait=False)

    # -- the process's answers ----------------------------------------------------------------------

    def _read(self, connection: Connection) -> None:
        """In a thread, until the process or its owner is gone."""
        with contextlib.suppress(EOFError, OSError, RuntimeError), connection:
            while True:
                self._loop.call_soon_threadsafe(self._deliver, connection.recv())
        with contextlib.suppress(RuntimeError):  # the owner's loop is closed
            self._loop.call_soon_threadsafe(self._lost)

    def _deliver(self, message: Answer | UserError | None) -> None:
        if not isinstance(message, Answer):
            self._loaded.set_result(message)
        elif (waiting := self._waiting.get(message.episode)) and not waiting.done():
            waiting.set_result(message)

    def _lost(self) -> None:
        """The process is gone."""
        ending = self._process.ending() if self._alive else "it was killed"
        self.kill()
        if not self._loaded.done():
            reason = f"the file ended its process ({ending}) when it was loaded"
            fix = "import the file in Python to see why"
            self._loaded.set_result(UserError(reason, where=self._path, fix=fix))
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(
                    AgentFailed(f"its process ended ({ending})", innocent=self._shared)
                )
