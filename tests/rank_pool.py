"""Processes that stay alive across tests and run a function as the ranks of a gloo world."""

import contextlib
import multiprocessing as mp
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _serve(rank: int, connection: Any) -> None:
    import torch

    torch.set_num_threads(1)
    while (job := connection.recv()) is not None:
        function, args, world, port = job
        try:
            connection.send((True, _run_as_rank(function, args, rank, world, port)))
        except BaseException:
            connection.send((False, traceback.format_exc()))


def _run_as_rank(function: Callable, args: tuple, rank: int, world: int, port: int) -> Any:
    import torch.distributed as dist

    from megarlhf.parallel.groups import join_world

    join_world(rank, world, "127.0.0.1", port, timeout_s=120)
    from megatron.core import parallel_state

    try:
        return function(rank, world, *args)
    finally:
        with contextlib.suppress(Exception):
            parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


class RankPool:
    """Runs ``function(rank, world, *args)`` on ``world`` ranks; functions must be importable."""

    def __init__(self) -> None:
        self._context = mp.get_context("spawn")
        self._members: list[tuple[Any, Any]] = []

    def run(self, world: int, function: Callable, *args: Any) -> list[Any]:
        while len(self._members) < world:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(
                target=_serve, args=(len(self._members), theirs), daemon=True
            )
            process.start()
            self._members.append((process, ours))
        port = free_port()
        for _, connection in self._members[:world]:
            connection.send((function, args, world, port))
        answers = self._answers(world)
        failures = [f"rank {r}:\n{text}" for r, (ok, text) in sorted(answers.items()) if not ok]
        if failures:
            self.close()  # the others may wait for the one that failed: start afresh next time
            raise AssertionError("\n".join(failures))
        return [answers[rank][1] for rank in range(world)]

    def _answers(self, world: int) -> dict[int, tuple[bool, Any]]:
        """Every rank's answer; once one failed, only what arrives within a few seconds."""
        waiting = {connection: rank for rank, (_, connection) in enumerate(self._members[:world])}
        answers: dict[int, tuple[bool, Any]] = {}
        while waiting:
            failed = any(not ok for ok, _ in answers.values())
            ready = wait(list(waiting), timeout=3 if failed else 280)
            if not ready:
                names = ", ".join(map(str, waiting.values()))
                answers[min(waiting.values())] = (False, f"no answer from ranks {names}")
                break
            for connection in ready:
                rank = waiting.pop(connection)
                try:
                    answers[rank] = connection.recv()
                except EOFError:
                    answers[rank] = (False, "the process died")
        return answers

    def close(self) -> None:
        for process, _ in self._members:
            process.kill()
            process.join()
        self._members = []
