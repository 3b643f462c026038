"""A rank's share of its machine, which it has with others: memory and processors."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from megarlhf.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class _Rank:
    """What every rank tells the others: its machine, what it wants of it, and what is free there."""

    machine: str
    processors: tuple[int, ...]
    wanted: int
    free: int


def claim(nbytes: int) -> int:
    """Ask for memory of the host's. Collective over all ranks.

    Args:
        nbytes: What this rank is about to take.

    Returns:
        How many threads it may compute with: an even share of the processors, or, without a GPU, as
        many as it has for all else. Ranks that are bound to processors of their own share with nobody.

    Raises:
        UserError: On some machine the ranks want more than is free; on every rank.
    """
    processors = tuple(sorted(os.sched_getaffinity(0)))
    own = _Rank(socket.gethostname(), processors, nbytes, free_memory())
    ranks = [own] * dist.get_world_size()
    dist.all_gather_object(ranks, own)
    for machine in sorted({rank.machine for rank in ranks}):
        here = [rank for rank in ranks if rank.machine == machine]
        wanted, free = sum(rank.wanted for rank in here), min(rank.free for rank in here)
        if wanted > free:
            raise UserError(
                f"the states of {len(here)} ranks take {wanted / GIB:.1f} GiB of {machine}'s memory, "
                f"of which {free / GIB:.1f} are free",
                where="optimizer.offload",
                fix="use more machines, or leave the states on the GPUs: none",
            )
    if not torch.cuda.is_available():
        return torch.get_num_threads()
    same = sum((rank.machine, rank.processors) == (own.machine, processors) for rank in ranks)
    return max(1, len(processors) // same)


def free_memory() -> int:
    """Bytes of this machine's memory that may be taken without swapping, as Linux estimates it."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(kib) * 1024
