"""What both ends of a stream must agree on, and the process group between them."""

import datetime
import os
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from megarlhf.models.lora.adapter import Adapter, AdapterSpec
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel import interface
from megarlhf.parallel.stores import find_store
from megarlhf.parallel.topology import Topology
from megarlhf.sync.adapter_layout import adapter_parameters
from megarlhf.sync.engine_layout import EngineTopology, engine_parameters
from megarlhf.sync.plan import Bucket, plan_stream


@dataclass(frozen=True)
class StreamInfo:
    """Everything an engine needs to receive from a trainer; plain JSON on the way.

    Attributes:
        model_path: Hugging Face directory of the trained model (for its shapes).
        trainer: The trainer's layout, as a dictionary of `Topology`.
        engine: The engines', as a dictionary of `EngineTopology`.
        number: Of the engine that this is for.
        host: Where trainer rank 0's store listens.
        port: Its port.
        name: Unique name of this link (engine and how often it was started).
        transport: A key of `transports.TRANSPORTS`.
        bucket_bytes: See `plan_stream`, which counts elements.
        dtype: torch dtype name of the elements on the wire.
        timeout_s: The longest a single send or receive of the trainer's may wait, seconds.
        adapters: An `Adapter` as a dictionary, where only adapters are trained; their link is a second.
        adapter_dtype: torch dtype name of their elements on the wire.
    """

    model_path: str
    trainer: dict[str, Any]
    engine: dict[str, Any]
    number: int
    host: str
    port: int
    name: str
    transport: str
    bucket_bytes: int
    dtype: str
    timeout_s: float
    adapters: dict[str, Any] | None = None
    adapter_dtype: str = ""

    def of_adapters(self) -> "StreamInfo":
        """Of the link that goes beside this one, for adapters."""
        return replace(self, name=f"{self.name}-adapters", dtype=self.adapter_dtype)

    def adapter_spec(self, spec: ModelSpec) -> AdapterSpec | None:
        """The adapters that are trained; None where the whole model is."""
        return AdapterSpec.of(spec, Adapter(**self.adapters)) if self.adapters else None

    def as_dict(self) -> dict[str, Any]:
        """For vLLM's ``init_info``."""
        return asdict(self)

    @property
    def trainer_topology(self) -> Topology:
        """The trainer's layout."""
        return Topology(**self.trainer)

    @property
    def engine_topology(self) -> EngineTopology:
        """The engines' layout."""
        return EngineTopology(**self.engine)

    @property
    def wire_dtype(self) -> torch.dtype:
        """dtype of the elements on the wire."""
        return getattr(torch, self.dtype)

    @property
    def patience_s(self) -> float:
        """How long an engine waits for the trainer: which may first wait for every other engine."""
        return self.timeout_s * (self.engine_topology.engines + 1)

    def plan(self, spec: ModelSpec) -> list[Bucket]:
        """The plan that both ends replay; of a model, or of adapters."""
        elements = self.bucket_bytes // self.wire_dtype.itemsize
        layout = adapter_parameters if isinstance(spec, AdapterSpec) else engine_parameters
        return plan_stream(spec, self.trainer_topology, self.engine_topology, elements, layout)


class Link:
    """Point-to-point messages between trainer ranks and one engine's workers.

    Process groups of its own, outside torch.distributed's world: neither vLLM's nor Megatron's
    groups know of them, and losing an engine loses only this link.

    Args:
        info: What both ends agreed on.
        rank: Rank in the link: the trainer's ranks first, then the engine's workers.
        device: Where messages live: CPU over gloo, CUDA over NCCL.
        store: The store, where this end already has one (trainer rank 0 serves it).
        connections: Between two processes, over gloo. Messages take turns in them.
    """

    def __init__(
        self,
        info: StreamInfo,
        rank: int,
        device: torch.device,
        store: dist.Store | None = None,
        connections: int = 1,
    ) -> None:
        is_engine = rank >= info.trainer_topology.world
        seconds = info.patience_s if is_engine else info.timeout_s
        timeout = datetime.timedelta(seconds=seconds)
        if store is None:
            store = find_store(info.host, info.port, seconds)
        scoped = dist.PrefixStore(info.name, store)
        size = info.trainer_topology.world + info.engine_topology.tp
        self.device = device
        if device.type == "cuda":
            self._groups: list[Any] = [_nccl(scoped, rank, size, timeout)]
        else:
            interface.use_route_to(info.host)
            self._groups = [
                dist.ProcessGroupGloo(dist.PrefixStore(str(number), scoped), rank, size, timeout)
                for number in range(connections)
            ]
        self._sent: Counter[int] = Counter()  # messages to each, and from each
        self._received: Counter[int] = Counter()
        self._store, self._scoped = store, scoped
        self._first_worker = info.trainer_topology.world

    def worker(self, worker: int) -> int:
        """Rank in the link of a worker of the engine."""
        return self._first_worker + worker

    def write(self, key: str, text: str) -> None:
        """Leave a text for everyone on this link."""
        self._scoped.set(key, text)

    def read(self, key: str) -> str:
        """Wait for a text and read it."""
        return self._scoped.get(key).decode()

    def send(self, message: torch.Tensor, to: int) -> Any:
        """Start sending a contiguous tensor; wait on the result before changing it."""
        return self._in_turn(self._sent, to).send([message], to, 0)

    def receive(self, message: torch.Tensor, source: int) -> Any:
        """Start receiving into a contiguous tensor; wait on the result before reading it."""
        return self._in_turn(self._received, source).recv([message], source, 0)

    def _in_turn(self, count: Counter[int], peer: int) -> Any:
        """The process group of the next message; both ends count alike."""
        count[peer] += 1
        return self._groups[count[peer] % len(self._groups)]


def _nccl(store: dist.Store, rank: int, size: int, timeout: datetime.timedelta) -> Any:
    """A group whose works, waited for, block and raise in time.

    Without the variable, which torch reads here, a watchdog would end this process with a lost engine.
    """
    name = "TORCH_NCCL_BLOCKING_WAIT"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        return dist.ProcessGroupNCCL(store, rank, size, timeout)
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
