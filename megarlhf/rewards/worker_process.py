"""The owner's side of a worker process: start it, call it, kill it when it hangs, start it again."""

import asyncio
import contextlib
from concurrent.futures import Executor
from multiprocessing.connection import Connection
from typing import Any

from megarlhf.errors import UserError
from megarlhf.rewards.function_file import SUBJECT
from megarlhf.rewards.scorer import Batch, CallFailed, Scores
from megarlhf.rewards.user_process import LOAD_TIMEOUT_S, UserProcess


class WorkerProcess:
    """One process that has loaded a reward function. One call at a time.

    Args:
        path: The reward's file.
        timeout_s: The longest a call may take.
        threads: Wait for the process; one for each worker.
    """

    def __init__(self, path: str, timeout_s: float, threads: Executor) -> None:
        self._path, self._timeout_s, self._threads = path, timeout_s, threads
        self._process: UserProcess | None = None

    async def start(self) -> None:
        """Start the process and let it load the function.

        Raises:
            UserError: The file does not load there.
        """
        if self._process is not None:
            return
        self._process = UserProcess("megarlhf.rewards.worker", self._path, str(self._timeout_s))
        try:
            error = await self._answer(LOAD_TIMEOUT_S)
        except CallFailed as failure:
            raise UserError(
                failure.reason, where=self._path, fix="import the file in Python to see why"
            ) from None
        if error is not None:
            self.kill()
            raise error

    async def call(self, batch: Batch) -> Scores:
        """Score a batch, in a new process if the last one is gone.

        Raises:
            CallFailed: The function raised, hung, or took the process with it.
        """
        await self.start()
        answer = await self._answer(self._timeout_s, batch)
        if isinstance(answer, CallFailed):
            raise answer
        return answer

    def kill(self) -> None:
        """End the process and all that it started."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()

    async def _answer(self, timeout_s: float, batch: Batch | None = None) -> Any:
        """What the process sends next, to a batch if there is one; where it does not, kill it."""
        assert self._process is not None
        process, loop = self._process, asyncio.get_running_loop()
        talk = loop.run_in_executor(self._threads, _exchange, process.connection, batch)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(talk)
        except TimeoutError:
            raise CallFailed(f"{SUBJECT} did not return within {timeout_s:g} s") from None
        except (EOFError, OSError):
            raise CallFailed(f"{SUBJECT} ended its process ({process.ending()})") from None
        finally:
            # Also when this wait was cancelled: the answer must not be taken for the next call's.
            if not talk.done() or talk.exception() is not None:
                self.kill()
                with contextlib.suppress(EOFError, OSError):
                    await talk
                process.connection.close()


def _exchange(connection: Connection, batch: Batch | None) -> Any:
    if batch is not None:
        connection.send(batch)
    return connection.recv()
