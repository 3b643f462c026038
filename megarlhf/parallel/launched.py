"""A rank that torchrun, srun or nobody (a single process) started."""

import os
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from megarlhf.errors import UserError
from megarlhf.parallel import device
from megarlhf.parallel.groups import join_world

Value = TypeVar("Value")


class LaunchedRank:
    """This process among those that run the same command; use as a context manager.

    Attributes:
        rank: 0 for the one that owns files and the terminal.
        world: How many there are.
    """

    def __init__(self, rank: int, world: int, address: str, port: int) -> None:
        self.rank, self.world = rank, world
        self._address, self._port = address, port

    @classmethod
    def from_environment(cls) -> "LaunchedRank":
        """Read RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; without them, a world of one."""
        if "WORLD_SIZE" not in os.environ:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                return cls(0, 1, "127.0.0.1", probe.getsockname()[1])
        environment = os.environ
        return cls(
            int(environment["RANK"]),
            int(environment["WORLD_SIZE"]),
            environment["MASTER_ADDR"],
            int(environment["MASTER_PORT"]),
        )

    def __enter__(self) -> "LaunchedRank":
        if not torch.cuda.is_available():
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        join_world(self.rank, self.world, self._address, self._port)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        dist.destroy_process_group()

    def first(self, act: Callable[[], Value]) -> Value:
        """Let the first rank act and give every rank the outcome, its `UserError` included."""
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = act()
            except UserError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        value, error = outcome
        if error is not None:
            raise error
        return value

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; the same answer everywhere."""
        shared = torch.tensor([float(flag)], device=device.prepare())
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return bool(shared.item())
