"""The ways that weights take from the trainer's ranks into an engine, and which one is taken.

A transport has two ends with three verbs each: `Outlet` on every rank of the trainer, `Inlet` in every
worker of an engine. Adding one: docs/contributing.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from megarlhf.errors import UserError
from megarlhf.sync.cuda_ipc import CudaIpc
from megarlhf.sync.landing import Landing
from megarlhf.sync.link import Link, StreamInfo
from megarlhf.sync.mapped import MappedInlet, MappedOutlet, Memory
from megarlhf.sync.messages import MessageInlet, MessageOutlet, Read
from megarlhf.sync.plan import Bucket, Move
from megarlhf.sync.shared_memory import SharedMemory


class Outlet(Protocol):
    """A trainer rank's end towards one engine."""

    def begin(self, plan: list[Bucket]) -> None:
        """An update begins."""

    def send(self, bucket: Bucket, worker: int, moves: list[Move], read: Read) -> int:
        """Start giving a worker its part of a bucket; returns the bytes."""

    def flush(self) -> None:
        """Wait until the engine has everything."""


class Inlet(Protocol):
    """An engine worker's end."""

    def begin(self) -> None:
        """An update begins: the engine computes nothing now."""

    def receive(self, bucket: Bucket, messages: dict[int, list[Move]]) -> dict[str, torch.Tensor]:
        """The values of a bucket's parameters: in live memory, or fresh memory."""

    def done(self, bucket: Bucket) -> None:
        """Those values have been taken."""


@dataclass(frozen=True)
class Transport:
    """A row of the table.

    Attributes:
        device: Of the weights; None: any.
        memory: How memory is shared; None: messages.
        link: Device of the link's messages.
        any_node: Whether the two ends may be on different machines.
        transfer_mib: What one transfer of a message holds at most.
        connections: See `Link`.
        of_vllm: Both ends are vLLM's own: `vllm_transport`.
    """

    device: str | None
    memory: Callable[[], Memory] | None
    link: str
    any_node: bool
    transfer_mib: int = 0
    connections: int = 1
    of_vllm: bool = False

    @property
    def transfer_bytes(self) -> int:
        """The same in bytes."""
        return self.transfer_mib * 2**20


TRANSPORTS = {
    "gloo": Transport(None, None, "cpu", any_node=True, transfer_mib=2, connections=2),
    "shared_memory": Transport("cpu", SharedMemory, "cpu", any_node=False),
    "nccl": Transport("cuda", None, "cuda", any_node=True, transfer_mib=64),
    "cuda_ipc": Transport("cuda", CudaIpc, "cpu", any_node=False),
    "nccl_m2n": Transport("cuda", None, "cuda", any_node=True, of_vllm=True),
}


def choose(wanted: str, *, device: str, one_node: bool, colocated: bool) -> str:
    """The transport to an engine.

    Args:
        wanted: A name, or ``auto``.
        device: Of the trainer's weights.
        one_node: Whether the engine is on the machine of all of the trainer's ranks.
        colocated: Whether it shares their GPUs, which NCCL does not allow.

    Raises:
        UserError: The wanted one cannot be taken.
    """
    if wanted == "auto":
        if device == "cpu":
            return "shared_memory" if one_node else "gloo"
        if colocated:
            return "cuda_ipc" if one_node else "gloo"
        return "nccl"
    transport = TRANSPORTS[wanted]
    why = None
    if transport.device not in (None, device):
        why = f"is for weights on {transport.device}, and these are on {device}"
    elif not transport.any_node and not one_node:
        why = "needs the engines on the machine of the trainer's ranks"
    elif transport.link == "cuda" and colocated:
        why = "cannot connect processes that share a GPU"
    if why is not None:
        raise UserError(
            f"{wanted} {why}", where="stream.transport", fix="use stream.transport=auto"
        )
    return wanted


def open_outlet(
    info: StreamInfo,
    plan: list[Bucket],
    rank: int,
    device: torch.device,
    store: torch.distributed.Store | None,
) -> Outlet:
    """Meet an engine, from a rank of the trainer."""
    transport = TRANSPORTS[info.transport]
    link = Link(info, rank, _link_device(transport, device), store, transport.connections)
    if transport.memory is None:
        return MessageOutlet(link, info.wire_dtype, transport.transfer_bytes)
    senders = {
        worker: sorted({s for bucket in plan for s in bucket.messages[info.number, worker]})
        for worker in range(info.engine_topology.tp)
    }
    return MappedOutlet(link, transport.memory(), info.wire_dtype, senders, rank)


def open_inlet(
    info: StreamInfo, plan: list[Bucket], worker: int, device: torch.device, landing: Landing
) -> Inlet:
    """Meet the trainer, from a worker of an engine."""
    transport = TRANSPORTS[info.transport]
    rank = info.trainer_topology.world + worker
    link = Link(info, rank, _link_device(transport, device), None, transport.connections)
    dtype = info.wire_dtype
    place = info.number, worker
    if transport.memory is None:
        size = transport.transfer_bytes
        return MessageInlet(link, landing, dtype, device, plan, place, size)
    return MappedInlet(link, transport.memory(), landing, dtype, device, plan, place)


def _link_device(transport: Transport, device: torch.device) -> torch.device:
    return device if transport.link == device.type else torch.device(transport.link)
