"""Processes that stay alive and run functions as the ranks of a world on this machine."""

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from megarlhf.errors import UserError
from megarlhf.parallel.stores import find_store, serve_store

GRACE_S = 3.0  # how long the other ranks may still answer once one has failed
LOG_TAIL = 2000  # characters of a failed rank's output that are shown


class RankFailure(RuntimeError):
    """A rank raised, died or did not answer; the text has every failed rank's traceback.

    Its cause is the rank's `UserError` where it raised one.
    """


class RankPool:
    """Runs ``function(rank, world, *args)`` on the ranks of a new world, in processes kept alive.

    Processes are started when a world first needs them. They end with `close`, and by themselves
    when this process is gone, however it went. After a failure all of them are killed (the others
    may wait for the one that failed) and the next run starts new ones.

    Args:
        timeout_s: The longest a run may take.
        log_directory: Where to the processes write what they print; None: where this one does.
    """

    def __init__(self, *, timeout_s: float = 280.0, log_directory: Path | None = None) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._members: list[tuple[Any, Connection]] = []
        self.timeout_s, self._log_directory = timeout_s, log_directory

    def start(self, world: int) -> None:
        """Have ``world`` processes; returns while they still import what they need."""
        while len(self._members) < world:
            rank = len(self._members)
            ours, theirs = self._context.Pipe()
            process = self._context.Process(
                target=_serve, args=(rank, theirs, self._log_of(rank)), daemon=True
            )
            process.start()
            theirs.close()  # so that ours reads an end of file when the process dies
            self._members.append((process, ours))

    def run(self, world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What the function returned, rank by rank.

        Args:
            world: Number of ranks.
            function: Importable; called as ``function(rank, world, *args)``.
            args: Travel pickled.

        Raises:
            RankFailure: A rank raised, died or did not answer in time.
        """
        self.start(world)
        store = serve_store("127.0.0.1", self.timeout_s)  # as long as its ranks need it
        with contextlib.suppress(BrokenPipeError):  # a process that died: `_answers` says so
            for _, connection in self._members[:world]:
                connection.send((function, args, world, store.port, self.timeout_s))
        answers = self._answers(world)
        failures = {rank: value for rank, (ok, value) in sorted(answers.items()) if not ok}
        if failures:
            self.close()
            causes = [cause for _, cause in failures.values() if cause is not None]
            raise RankFailure(_describe(failures)) from (causes[0] if causes else None)
        return [answers[rank][1] for rank in range(world)]

    def _answers(self, world: int) -> dict[int, tuple[bool, Any]]:
        """Every rank's answer; once one failed, only what arrives within the grace period."""
        waiting = {connection: rank for rank, (_, connection) in enumerate(self._members[:world])}
        answers: dict[int, tuple[bool, Any]] = {}
        while waiting:
            failed = any(not ok for ok, _ in answers.values())
            ready = wait(list(waiting), timeout=GRACE_S if failed else self.timeout_s)
            if not ready:
                if not failed:
                    for rank in waiting.values():
                        text = f"no answer within {self.timeout_s:g} s{self._tail(rank)}"
                        answers[rank] = (False, (text, None))
                break
            for connection in ready:
                rank = waiting.pop(connection)
                try:
                    answers[rank] = connection.recv()
                except (EOFError, ConnectionResetError):
                    process = self._members[rank][0]
                    process.join(GRACE_S)
                    text = f"the process died (exit code {process.exitcode}){self._tail(rank)}"
                    answers[rank] = (False, (text, None))
        return answers

    def _log_of(self, rank: int) -> Path | None:
        return self._log_directory / f"rank{rank}.log" if self._log_directory else None

    def _tail(self, rank: int) -> str:
        log = self._log_of(rank)
        text = log.read_text(errors="replace").strip() if log and log.is_file() else ""
        return f"; its last output:\n{text[-LOG_TAIL:]}" if text else ""

    def close(self) -> None:
        """Kill the processes; new ones start when they are needed."""
        for process, connection in self._members:
            process.kill()
            process.join()
            connection.close()
        self._members = []

    def __enter__(self) -> "RankPool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _describe(failures: dict[int, tuple[str, Any]]) -> str:
    """Each failed rank's text, those with the same one together."""
    ranks_of: dict[str, list[int]] = {}
    for rank, (text, _) in failures.items():
        ranks_of.setdefault(text, []).append(rank)
    return "\n".join(
        f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}: {text}"
        for text, ranks in ranks_of.items()
    )


def _serve(rank: int, connection: Connection, log: Path | None) -> None:
    """A process of the pool: run what arrives, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that owns the pool
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if log is not None:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, 1)
        os.dup2(file, 2)
    os.environ["LOCAL_RANK"] = str(rank)
    import torch

    torch.set_num_threads(1)
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    while True:
        try:
            function, args, world, port, timeout_s = connection.recv()
        except EOFError:
            return
        try:
            answer = True, _run_as_rank(function, args, rank, world, port, timeout_s)
        except BaseException as error:
            cause = error if isinstance(error, UserError) else None
            answer = False, (traceback.format_exc(), cause)
        connection.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_as_rank(
    function: Callable[..., Any], args: tuple, rank: int, world: int, port: int, timeout_s: float
) -> Any:
    import torch.distributed as dist

    from megarlhf.parallel.groups import join_world

    store = find_store("127.0.0.1", port, timeout_s)
    join_world(rank, world, store, timeout_s=timeout_s)
    from megatron.core import parallel_state

    try:
        return function(rank, world, *args)
    finally:
        with contextlib.suppress(Exception):
            parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
        # Megatron's cycles hold process groups, whose idle threads would spin on. Tensors that C++ holds
        # as well come free with the second look only.
        gc.collect()
        gc.collect()
        gc.freeze()  # what is left are modules: 0.3 s each time that they are looked through again
