"""A rank that torchrun, srun or nobody (a single process) started."""

import datetime
import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from megarlhf.errors import UserError
from megarlhf.parallel import device
from megarlhf.parallel.groups import join_world
from megarlhf.parallel.stores import PATIENCE_S

Value = TypeVar("Value")


class LaunchedRank:
    """This process among those that run the same command; use as a context manager.

    Args:
        rank: 0 for the one that owns files and the terminal.
        world: How many there are.
        address: Rank 0's host, where there are others.
    """

    def __init__(self, rank: int, world: int, address: str | None = None) -> None:
        self.rank, self.world = rank, world
        self._address = address

    @classmethod
    def from_environment(cls) -> "LaunchedRank":
        """Read RANK, WORLD_SIZE and MASTER_ADDR; without them, a world of one."""
        if "WORLD_SIZE" not in os.environ:
            return cls(0, 1)
        environment = os.environ
        return cls(
            int(environment["RANK"]), int(environment["WORLD_SIZE"]), environment["MASTER_ADDR"]
        )

    def __enter__(self) -> "LaunchedRank":
        if not torch.cuda.is_available():
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        if self._address is None:
            join_world(self.rank, self.world, dist.HashStore())
        else:
            patience = datetime.timedelta(seconds=PATIENCE_S)
            store, _, _ = next(rendezvous("env://", timeout=patience))
            join_world(self.rank, self.world, store, self._address)
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
