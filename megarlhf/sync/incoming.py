"""Transfers on their way from one rank of the trainer to a worker of an engine."""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from megarlhf.sync.link import Link
from megarlhf.sync.transfers import Transfer, buffer, in_one_piece, numel, split

BUFFERS = 2  # for what cannot be received into its place


class Expected(NamedTuple):
    """A transfer on its way: the number of its bucket and of the buffer, where it needs one."""

    index: int
    transfer: Transfer
    places: list[torch.Tensor]
    message: torch.Tensor
    buffer: int | None
    work: Any


class Incoming:
    """What comes from one sender, in order.

    Args:
        link: To the trainer.
        sender: The rank.
        schedule: Every transfer of an update, with the number of its bucket.
        places: Where the rows of a transfer go.
        dtype: Of the elements.
    """

    def __init__(
        self,
        link: Link,
        sender: int,
        schedule: list[tuple[int, Transfer]],
        places: Callable[[int, Transfer], list[torch.Tensor]],
        dtype: torch.dtype,
    ) -> None:
        self._link, self._sender, self._schedule, self._places = link, sender, schedule, places
        self._dtype = dtype
        self._buffers = [torch.empty(0, dtype=dtype)] * BUFFERS
        self.begin()

    def begin(self) -> None:
        """Nothing has come yet."""
        self._next = 0  # in the schedule
        self._free = list(range(BUFFERS))
        self._expected: deque[Expected] = deque()

    def lacks(self, index: int) -> bool:
        """Whether something of that bucket is still to come."""
        rest = self._expected[0].index if self._expected else self._coming
        return rest is not None and rest <= index

    @property
    def _coming(self) -> int | None:
        """The bucket of the next transfer that is not expected yet."""
        return self._schedule[self._next][0] if self._next < len(self._schedule) else None

    def expect(self, last: int) -> None:
        """Start receiving what belongs to buckets up to number ``last``, as far as buffers go."""
        while self._coming is not None and self._coming <= last:
            index, transfer = self._schedule[self._next]
            places = self._places(index, transfer)
            message, number = in_one_piece(places, self._dtype, self._link.device), None
            if message is None:
                if not self._free:
                    return
                number = self._free.pop()
                message = self._message(number, numel(transfer))
            work = self._link.receive(message, self._sender)
            self._expected.append(Expected(index, transfer, places, message, number, work))
            self._next += 1

    def _message(self, number: int, size: int) -> torch.Tensor:
        if self._buffers[number].numel() < size:
            self._buffers[number] = buffer(size, self._dtype, self._link.device)
        return self._buffers[number][:size]

    def take(self) -> None:
        """Wait for the oldest that is expected."""
        oldest = self._expected.popleft()
        oldest.work.wait()
        if oldest.buffer is not None:
            parts = split(oldest.message, oldest.transfer)
            for place, part in zip(oldest.places, parts, strict=True):
                place.copy_(part.view(place.shape))
            self._free.append(oldest.buffer)
