"""Convert a checkpoint: every process moves the rows of its share of the tensors.

Memory is a block of rows a thread, whatever the size of the model. All processes write to the same
files, each to its own places; the first one creates them, and publishes the directory when it is whole.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from megarlhf.errors import UserError
from megarlhf.models.weights import fingerprint, publishing
from megarlhf.models.weights.companions import copy_companions, write_config
from megarlhf.models.weights.fingerprint import TensorPrint
from megarlhf.models.weights.finite import bytes_are_finite
from megarlhf.models.weights.first_rank import on_first
from megarlhf.models.weights.row_files import RowFiles, StoredTensor
from tools.checkpoint_convert.checkpoints import Checkpoint
from tools.checkpoint_convert.journal import Journal, stamps
from tools.checkpoint_convert.targets import Target

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

MOST_THREADS = 4  # more do not make a disk faster
Progress = Callable[[int], None]  # is told of bytes that are done


@dataclass(frozen=True)
class Conversion:
    """From what to what, and where.

    Attributes:
        source: The checkpoint.
        target: What becomes of it.
        out: Its directory, which must not be there yet.
    """

    source: Checkpoint
    target: Target
    out: Path

    def run(self, *, resume: bool, progress: Progress = lambda _: None) -> None:
        """Do it; collective where there are process groups.

        Args:
            resume: Go on with what an interrupted run has left.
            progress: Told of this process's share as it goes.

        Raises:
            UserError: See `megarlhf.models.weights.loading.check_names`; a tensor is not what the
                source's fingerprint says; the directory exists; the disk is full.
        """
        rank, world = place()
        journal = Journal(publishing.partial_of(self.out), rank)
        with ExitStack() as claim:
            on_first(lambda: claim.enter_context(self._begun(journal, resume=resume)))
            self._fill(journal, progress)
            if world > 1:
                dist.barrier()
            on_first(lambda: self._finish(journal))

    def _fill(self, journal: Journal, progress: Progress) -> None:
        """Write this process's share."""
        rank, world = place()
        expected = fingerprint.read(self.source.directory) or {}
        done = journal.read()
        partial = publishing.partial_of(self.out)
        with (
            self.source.files.rows() as source,
            RowFiles(partial, self.target.tensors, writable=True) as target,
        ):

            def convert(name: str) -> int:
                if name not in done or fingerprint.of_rows(target, name) != done[name]:
                    found = self._move(name, source, target)
                    if expected:
                        fingerprint.check(name, found, expected.get(name), self.source.directory)
                    journal.add(name, found)
                return self.target.tensors[name].nbytes

            names = share(self.target.tensors, rank, world)
            with in_threads(convert, names, threads(world)) as converted:
                for nbytes in converted:
                    progress(nbytes)
            target.sync()  # another machine that shares the disk may be the one that publishes

    @contextmanager
    def _begun(self, journal: Journal, *, resume: bool) -> Iterator[None]:
        """What this writes to is there, and nobody else's."""
        if os.path.lexists(self.out):  # a link to nowhere is in the way, too
            raise UserError(
                "it exists already", where=str(self.out), fix="remove it, or choose another --out"
            )
        job = {
            "source": str(self.source.directory.absolute()),
            "files": stamps(self.source.directory, self.source.files.tensors),
            "target": self.target.kind,
        }
        goes_on = resume and journal.has_begun()
        if not goes_on:
            publishing.create(self.out, self.target.files)
        with publishing.claimed(self.out):
            if goes_on:
                journal.check(job)
            else:
                journal.begin(job)
            yield

    def _move(self, name: str, source: RowFiles, target: RowFiles) -> TensorPrint:
        tensor = source.tensors[name]
        hash_, is_finite = fingerprint.Hash(), True
        for start, _, rows in source.blocks(name):
            hash_.update(rows)
            is_finite = is_finite and bytes_are_finite(rows, tensor.dtype)
            target.write_rows(name, start, rows)
        if not is_finite:
            where = self.source.files.where(name)
            logger.warning("%s: the tensor %s has NaN or Inf in it", where, name)
        dtype = fingerprint.name_of(tensor.dtype)
        return TensorPrint(dtype, tensor.shape, hash_.hexdigest())

    def _finish(self, journal: Journal) -> None:
        prints = journal.read()
        partial = publishing.partial_of(self.out)
        beside = replace(self.source.spec, path=self.source.companions)
        copy_companions(beside, partial)
        write_config(beside, partial, next(iter(self.target.tensors.values())).dtype)
        fingerprint.write(partial, {name: prints[name] for name in self.target.tensors})
        self.target.finish(partial)
        journal.remove()
        publishing.publish(self.out)


def share(tensors: Mapping[str, StoredTensor], rank: int, world: int) -> list[str]:
    """A process's tensors, in their order: every process has about as many bytes."""
    by_size = sorted(tensors, key=lambda name: -tensors[name].nbytes)
    mine, loads = set(), [0] * world
    for name in by_size:
        least = loads.index(min(loads))
        loads[least] += tensors[name].nbytes
        if least == rank:
            mine.add(name)
    return [name for name in tensors if name in mine]


@contextmanager
def in_threads(
    work: Callable[[str], Result], names: Sequence[str], count: int
) -> Iterator[Iterator[Result]]:
    """What ``work`` returns for each name, as it comes; where something fails the rest is not begun."""
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(work, name) for name in names]
        try:
            yield (future.result() for future in as_completed(futures))
        finally:
            pool.shutdown(cancel_futures=True)


def threads(world: int) -> int:
    """How many of a process: reading, hashing and writing all let other threads run."""
    return max(1, min(MOST_THREADS, len(os.sched_getaffinity(0)) // world))


def place() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
