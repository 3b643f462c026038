"""Who may go on: messages of one byte between the two ends of a stream."""

from collections.abc import Iterable
from typing import Any

import torch

from megarlhf.sync.link import Link


class Signals:
    """Messages of one byte. None waits for its receiver: both ends may be about to send one."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._pending: list[tuple[Any, torch.Tensor]] = []

    def give(self, peers: Iterable[int]) -> None:
        """Start sending one to each."""
        for peer in peers:
            token = torch.ones(1, dtype=torch.uint8)
            self._pending.append((self._link.send(token, peer), token))

    def wait(self, peers: Iterable[int]) -> None:
        """For one of each."""
        tokens = [(peer, torch.empty(1, dtype=torch.uint8)) for peer in peers]
        for work in [self._link.receive(token, peer) for peer, token in tokens]:
            work.wait()

    def flush(self) -> None:
        """Wait until all that were given have been received."""
        while self._pending:
            self._pending.pop(0)[0].wait()
