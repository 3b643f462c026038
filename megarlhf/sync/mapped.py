"""Weights written straight into an engine's memory: the trainer's ranks map it (one node only).

One copy, from the trainer's parameter to its place in the engine. What the engine keeps in a layout of
its own, or in memory that cannot be shared, is written into one of two slots, which take turns. Who may
write what when is said by messages of one byte.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from megarlhf.sync.landing import Landing
from megarlhf.sync.link import Link
from megarlhf.sync.messages import Read
from megarlhf.sync.plan import Bucket, Move
from megarlhf.sync.signals import Signals
from megarlhf.sync.slots import SLOTS, Targets, places_of, view


class Memory(Protocol):
    """How tensors are shared between processes of one node.

    Attributes:
        in_place: Whether an engine's live parameters can be; otherwise only fresh memory can.
    """

    in_place: bool

    def publish(self, tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], Any]:
        """Make memory of this process open to others; the tensors' ``data`` are in it then.

        Returns:
            That memory, as tensors, and a description for `attach` (JSON).
        """

    def attach(self, description: Any) -> dict[str, torch.Tensor]:
        """The tensors that another process has published, in this one."""

    def settle(self) -> None:
        """Everything written so far is in the memory."""

    def attached(self) -> None:
        """Every other process has attached: the name of the memory is no longer needed."""


class MappedOutlet:
    """A trainer rank's end towards one engine.

    Args:
        link: To the engine, for the small messages (CPU).
        memory: How memory is shared.
        dtype: Of the elements in the slots.
        senders: For each worker, the ranks that have anything for it.
        rank: This rank.
    """

    def __init__(
        self,
        link: Link,
        memory: Memory,
        dtype: torch.dtype,
        senders: Mapping[int, list[int]],
        rank: int,
    ) -> None:
        self._link, self._memory, self._dtype = link, memory, dtype
        self._signals = Signals(link)
        self._workers = [worker for worker, ranks in senders.items() if rank in ranks]
        self._open: dict[int, tuple[dict[str, torch.Tensor], dict[str, tuple[int, ...]]]] = {}
        for worker in self._workers:
            said = json.loads(link.read(f"memory{worker}"))
            self._open[worker] = (memory.attach(said["memory"]), said["staged"])
            self._signals.give([link.worker(worker)])
        self._signals.flush()

    def begin(self, plan: list[Bucket]) -> None:
        """Wait until no worker of the engine computes any more."""
        self._index = {id(bucket): index for index, bucket in enumerate(plan)}
        self._places = {}
        for worker, (_, staged) in self._open.items():
            sizes = {name: math.prod(s) * self._dtype.itemsize for name, s in staged.items()}
            self._places[worker] = places_of(plan, sizes)[0]
        self._free = dict.fromkeys(self._open, 0)  # turns that each worker is done with
        self._signals.wait([self._link.worker(worker) for worker in self._workers])

    def send(self, bucket: Bucket, worker: int, moves: list[Move], read: Read) -> int:
        """Write the values; returns the bytes."""
        tensors, staged = self._open[worker]
        places = self._places[worker][self._index[id(bucket)]]
        if places is not None:
            self._wait_for(worker, places.turn - SLOTS + 1)
        written = 0
        targets: dict[str, torch.Tensor] = {}
        for move in moves:
            name = move.engine_parameter
            if name in tensors:
                targets[name] = tensors[name]
            elif name not in targets:
                slot, shape = tensors[places.slot], tuple(staged[name])
                targets[name] = view(slot, places.offsets[name], shape, self._dtype)
            target = targets[name][move.target.slices]
            target.copy_(read(move).view(target.shape))
            written += target.nbytes
        self._memory.settle()
        self._signals.give([self._link.worker(worker)])
        return written

    def flush(self) -> None:
        """Wait until every worker is done with every slot."""
        for worker, places in self._places.items():
            self._wait_for(worker, sum(place is not None for place in places))
        self._signals.flush()

    def _wait_for(self, worker: int, turns: int) -> None:
        while self._free[worker] < turns:
            self._signals.wait([self._link.worker(worker)])
            self._free[worker] += 1


class MappedInlet:
    """An engine worker's end.

    Args:
        link: To the trainer, for the small messages (CPU).
        memory: How memory is shared.
        landing: The worker's parameters; live ones move into shared memory.
        dtype: Of the elements in the slots.
        device: Of the slots.
        plan: The buckets.
        worker: This worker, with the number of its engine.
    """

    def __init__(
        self,
        link: Link,
        memory: Memory,
        landing: Landing,
        dtype: torch.dtype,
        device: torch.device,
        plan: list[Bucket],
        worker: tuple[int, int],
    ) -> None:
        self._signals, self._memory = Signals(link), memory
        self._senders = sorted({s for bucket in plan for s in bucket.messages[worker]})
        self._targets = Targets(plan, landing, dtype, in_place=memory.in_place)
        self._staged = [bucket for bucket in plan if self._targets.uses_slot(bucket)]
        live = {name: landing.live(name) for name in self._targets.live}
        slots = self._targets.new_slots(device)
        self._tensors, description = memory.publish({**live, **slots})
        said = {"memory": description, "staged": self._targets.staged}
        link.write(f"memory{worker[1]}", json.dumps(said))
        self._signals.wait(self._senders)
        memory.attached()

    def begin(self) -> None:
        """Let the trainer write."""
        self._signals.flush()
        self._turn = 0  # of the slots: which of the staged buckets is next
        self._make_room(self._staged[:SLOTS])

    def receive(self, bucket: Bucket, messages: dict[int, list[Move]]) -> dict[str, torch.Tensor]:
        """The bucket's parameters, when every sender has written its part."""
        self._signals.wait(list(messages))
        return self._targets.of(bucket, self._tensors)

    def done(self, bucket: Bucket) -> None:
        """The bucket's slot may be written again."""
        if self._targets.uses_slot(bucket):
            self._turn += 1
            self._make_room(self._staged[self._turn + SLOTS - 1 :][:1])

    def _make_room(self, coming: list[Bucket]) -> None:
        """What was in the slots has been taken: buckets that come next may be written there."""
        for bucket in coming:
            self._targets.clear(self._targets.of(bucket, self._tensors))
        self._memory.settle()
        self._signals.give(self._senders)
