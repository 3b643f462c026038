"""The trainer's end of the stream: each rank gives the pieces it holds, straight from its memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from megarlhf.models.spec import ModelSpec
from megarlhf.sync.fingerprints import Fingerprints, fingerprints_of
from megarlhf.sync.link import StreamInfo
from megarlhf.sync.plan import Bucket, Move, Worker
from megarlhf.sync.transports import Outlet, open_outlet


@dataclass(frozen=True)
class Sent:
    """What one rank sent to one engine.

    Attributes:
        nbytes: Bytes.
        error: Why it could not send all; None if it did.
    """

    nbytes: int
    error: str | None = None


class Sender:
    """Replays the plan towards the engines it is connected to.

    Args:
        spec: The model.
        chunks: This rank's model chunks (not wrapped).
        rank: This trainer rank.
    """

    def __init__(self, spec: ModelSpec, chunks: Sequence[nn.Module], rank: int) -> None:
        self._spec, self._rank = spec, rank
        self._parameters = [dict(chunk.named_parameters()) for chunk in chunks]
        self._outlets: dict[int, Outlet] = {}
        self._plan: list[Bucket] | None = None

    def connect(
        self, info: StreamInfo, device: torch.device, store: dist.Store | None = None
    ) -> None:
        """Meet an engine; one of the same number is forgotten.

        Args:
            info: What both ends agreed on.
            device: Of the weights.
            store: The store, where this process serves it.
        """
        self._outlets.pop(info.number, None)
        if self._plan is None:
            self._plan, self._dtype = info.plan(self._spec), info.wire_dtype
        self._outlets[info.number] = open_outlet(info, self._plan, self._rank, device, store)

    @torch.no_grad()
    def send(self, engines: Sequence[int]) -> dict[int, Sent]:
        """Give every piece this rank holds to the workers of some engines.

        An engine that fails is left out from there on; the others get everything.
        """
        assert self._plan is not None
        nbytes = dict.fromkeys(engines, 0)
        errors: dict[int, str] = {}
        for number in engines:
            with _left_out(errors, number):
                self._outlets[number].begin(self._plan)
        for bucket in self._plan:
            for (number, worker), messages in bucket.messages.items():
                if self._rank in messages and number in nbytes and number not in errors:
                    with _left_out(errors, number):
                        nbytes[number] += self._outlets[number].send(
                            bucket, worker, messages[self._rank], self.read
                        )
        for number in sorted(set(engines) - set(errors)):
            with _left_out(errors, number):
                self._outlets[number].flush()
        return {number: Sent(nbytes[number], errors.get(number)) for number in engines}

    def read(self, move: Move) -> torch.Tensor:
        """The live values of a move, in this rank's dtype and the rectangle's shape."""
        return self._parameters[move.chunk][move.parameter].detach()[move.source.slices]

    @torch.no_grad()
    def fingerprints(self, engines: Sequence[int]) -> dict[Worker, Fingerprints]:
        """Of what this rank gives to each worker of some engines."""
        assert self._plan is not None
        found: dict[Worker, Fingerprints] = {}
        for bucket in self._plan:
            for worker, messages in bucket.messages.items():
                if worker[0] in engines and self._rank in messages:
                    moves = messages[self._rank]
                    values = (self.read(move) for move in moves)
                    found.setdefault(worker, {}).update(fingerprints_of(moves, values, self._dtype))
        return found


@contextmanager
def _left_out(errors: dict[int, str], number: int) -> Iterator[None]:
    """An engine whose link fails is noted, and left out from then on."""
    try:
        yield
    except RuntimeError as error:  # gloo's and NCCL's: the peer is gone, or does not answer
        errors[number] = " ".join(str(error).split())
