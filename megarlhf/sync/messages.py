"""Weights as messages, from each sender to each worker, a bucket at a time (gloo, NCCL).

A message is cut into transfers (`transfers`). The sender queues what lies in one piece and packs the
rest into two small buffers by turns; the worker lets transfers of the next bucket come in while a
bucket is landing, straight into their places where these are in one piece.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from megarlhf.sync.incoming import Incoming
from megarlhf.sync.landing import Landing
from megarlhf.sync.link import Link
from megarlhf.sync.plan import Bucket, Move
from megarlhf.sync.slots import Targets
from megarlhf.sync.transfers import Transfer, buffer, in_one_piece, numel, split, transfers_of

Read = Callable[[Move], torch.Tensor]  # a sender's values of a move, in whatever dtype
BUFFERS = 2  # what is packed is sent from these


class MessageOutlet:
    """A trainer rank's end towards one engine.

    Args:
        link: To the engine.
        dtype: Of the elements on the wire.
        transfer_bytes: Of a transfer, at most.
    """

    def __init__(self, link: Link, dtype: torch.dtype, transfer_bytes: int) -> None:
        self._link, self._dtype = link, dtype
        self._most = transfer_bytes // dtype.itemsize
        self._pending: deque[Any] = deque()
        self._buffers = [torch.empty(0, dtype=dtype)] * BUFFERS
        self._using: list[Any] = [None] * BUFFERS  # what is being sent from each
        self._turn = 0

    def begin(self, plan: list[Bucket]) -> None:
        """Forget what an update that failed has left."""
        self._pending.clear()
        self._using = [None] * BUFFERS

    def send(self, bucket: Bucket, worker: int, moves: list[Move], read: Read) -> int:
        """Start sending; returns the bytes."""
        nbytes = 0
        for transfer in transfers_of(moves, self._most):
            parts = [rows.of(read(rows.move)) for rows in transfer]
            message = in_one_piece(parts, self._dtype, self._link.device)
            packed = message is None
            if packed:
                message = self._pack(transfer, parts)
            work = self._link.send(message, self._link.worker(worker))
            if packed:
                self._using[self._turn] = work
            self._pending.append(work)
            nbytes += message.nbytes
        return nbytes

    def flush(self) -> None:
        """Wait until everything is sent."""
        while self._pending:
            self._pending.popleft().wait()

    def _pack(self, transfer: Transfer, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        self._turn = (self._turn + 1) % BUFFERS
        while self._using[self._turn] is not None:
            work = self._pending.popleft()
            work.wait()
            self._using = [None if work is used else used for used in self._using]
        size = numel(transfer)
        if self._buffers[self._turn].numel() < size:
            self._buffers[self._turn] = buffer(size, self._dtype, self._link.device)
        message = self._buffers[self._turn][:size]
        for part, place in zip(parts, split(message, transfer), strict=True):
            place.view(part.shape).copy_(part)
        return message


class MessageInlet:
    """An engine worker's end.

    Args:
        link: To the trainer.
        landing: The worker's parameters.
        dtype: Of the elements on the wire.
        device: Of the parameters.
        plan: The buckets.
        worker: This worker, with the number of its engine.
        transfer_bytes: Of a transfer, at most.
    """

    def __init__(
        self,
        link: Link,
        landing: Landing,
        dtype: torch.dtype,
        device: torch.device,
        plan: list[Bucket],
        worker: tuple[int, int],
        transfer_bytes: int,
    ) -> None:
        self._plan, self._index = plan, {id(bucket): i for i, bucket in enumerate(plan)}
        self._targets = Targets(plan, landing, dtype)
        self._slots = self._targets.new_slots(device)
        self._open: dict[int, dict[str, torch.Tensor]] = {}
        most = transfer_bytes // dtype.itemsize
        schedules: dict[int, list[tuple[int, Transfer]]] = {}
        for index, bucket in enumerate(plan):
            for sender, moves in bucket.messages[worker].items():
                cut = transfers_of(moves, most)
                schedules.setdefault(sender, []).extend((index, transfer) for transfer in cut)
        self._senders = {
            sender: Incoming(link, sender, schedule, self._places, dtype)
            for sender, schedule in schedules.items()
        }

    def begin(self) -> None:
        """Start from the first bucket."""
        self._open.clear()
        for sender in self._senders.values():
            sender.begin()

    def receive(self, bucket: Bucket, messages: dict[int, list[Move]]) -> dict[str, torch.Tensor]:
        """The bucket's parameters: live memory, or a slot where that cannot be written."""
        index = self._index[id(bucket)]
        waiting = list(self._senders.values())
        while waiting:
            # First this bucket of all: NCCL's first receive from a rank waits for it to send.
            for last in (index, index + 1):
                for sender in self._senders.values():
                    sender.expect(last)
            waiting = [sender for sender in self._senders.values() if sender.lacks(index)]
            for sender in waiting:
                sender.take()
        return self._targets_of(index)

    def done(self, bucket: Bucket) -> None:
        """Its slot may be written again."""
        del self._open[self._index[id(bucket)]]

    def _places(self, index: int, transfer: Transfer) -> list[torch.Tensor]:
        targets = self._targets_of(index)
        return [
            rows.of(targets[rows.move.engine_parameter][rows.move.target.slices])
            for rows in transfer
        ]

    def _targets_of(self, index: int) -> dict[str, torch.Tensor]:
        if index not in self._open:
            self._open[index] = self._targets.of(self._plan[index], self._slots)
            self._targets.clear(self._open[index])
        return self._open[index]
