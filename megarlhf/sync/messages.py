"""Weights as messages: one from each sender to each worker, a bucket at a time (gloo, NCCL)."""

from collections.abc import Callable
from typing import Any

import torch

from megarlhf.sync.landing import Landing
from megarlhf.sync.link import Link
from megarlhf.sync.plan import Bucket, Move, numel

Read = Callable[[Move], torch.Tensor]  # a sender's values of a move, in whatever dtype


class MessageOutlet:
    """A trainer rank's end towards one engine.

    Packing a message overlaps the sending of the one before it; two exist at most.

    Args:
        link: To the engine.
        dtype: Of the elements on the wire.
    """

    def __init__(self, link: Link, dtype: torch.dtype) -> None:
        self._link, self._dtype = link, dtype
        self._pending: list[Any] = []
        self._buffers = [torch.empty(0, dtype=dtype)] * 2  # kept from bucket to bucket
        self._turn = 0

    def begin(self, plan: list[Bucket]) -> None:
        """Forget what an update that failed has left."""
        self._pending = []

    def send(self, bucket: Bucket, worker: int, moves: list[Move], read: Read) -> int:
        """Start sending; returns the bytes."""
        size = numel(moves)
        self._turn = 1 - self._turn
        if self._buffers[self._turn].numel() < size:
            device = read(moves[0]).device
            self._buffers[self._turn] = torch.empty(size, dtype=self._dtype, device=device)
        message = self._buffers[self._turn][:size]
        parts = message.split([move.source.numel for move in moves])
        for move, part in zip(moves, parts, strict=True):
            part.view(move.source.shape).copy_(read(move))
        self.flush()
        self._pending.append(self._link.send(message, self._link.worker(worker)))
        return message.nbytes

    def flush(self) -> None:
        """Wait until everything is sent."""
        while self._pending:
            self._pending.pop(0).wait()


class MessageInlet:
    """An engine worker's end.

    Args:
        link: To the trainer.
        landing: The worker's parameters.
        dtype: Of the elements on the wire.
        device: Where messages live.
    """

    def __init__(
        self, link: Link, landing: Landing, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._link, self._landing, self._dtype, self._device = link, landing, dtype, device
        self._buffers: dict[int, torch.Tensor] = {}  # of each sender; kept, as the outlet's

    def begin(self) -> None:
        """Nothing: a message waits for its receiver."""

    def receive(self, bucket: Bucket, messages: dict[int, list[Move]]) -> dict[str, torch.Tensor]:
        """The bucket's parameters: live memory, or fresh memory where that cannot be written."""
        buffers = {sender: self._buffer(sender, numel(moves)) for sender, moves in messages.items()}
        works = [self._link.receive(buffer, sender) for sender, buffer in buffers.items()]
        targets = {name: self._target(name) for name in bucket.names}
        for work, (sender, moves) in zip(works, messages.items(), strict=True):
            work.wait()
            parts = buffers[sender].split([move.source.numel for move in moves])
            for move, part in zip(moves, parts, strict=True):
                target = targets[move.engine_parameter][move.target.slices]
                target.copy_(part.view(target.shape))
        return targets

    def done(self, bucket: Bucket) -> None:
        """Nothing: the memory is not used again."""

    def _buffer(self, sender: int, size: int) -> torch.Tensor:
        if sender not in self._buffers or self._buffers[sender].numel() < size:
            self._buffers[sender] = torch.empty(size, dtype=self._dtype, device=self._device)
        return self._buffers[sender][:size]

    def _target(self, name: str) -> torch.Tensor:
        if self._landing.is_direct(name, self._dtype):
            return self._landing.live(name).data
        make = torch.zeros if self._landing.has_padding(name) else torch.empty
        return make(self._landing.shape(name), dtype=self._dtype, device=self._device)
