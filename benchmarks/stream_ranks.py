"""Ranks of a trainer, each in a process of its own, that stream to an engine in another."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import Watch
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import parameters_of
from megarlhf.parallel.stores import serve_store
from megarlhf.parallel.topology import Topology
from megarlhf.sync.engine_layout import EngineTopology
from megarlhf.sync.link import StreamInfo
from megarlhf.sync.sender import Sender
from tests.models.tiny import read_tensors, stand_ins
from tests.rollout.engine_process import CPU, EngineProcess, Process, answer_calls

TIMEOUT_S = 60
END = ("_inlet", "_plan", "_landing")  # what a receiver has of one link


class Rank:
    """What a rank's process holds: its parameters, without Megatron, and a sender."""

    def __init__(self, path: Path, topology: Topology, rank: int) -> None:
        torch.set_num_threads(1)
        self.spec, self.topology, self.rank = ModelSpec.read(path), topology, rank
        chunks = stand_ins(self.spec, topology, rank)
        self.parameters = [dict(chunk.named_parameters()) for chunk in chunks]
        tensors = read_tensors(path)
        for parameter in parameters_of(self.spec, topology, rank):
            for piece in parameter.pieces:
                values = tensors[parameter.sources[piece.source]][piece.hf.slices]
                place = self.parameters[parameter.chunk][parameter.name][piece.local.slices]
                place.copy_(values.view(place.shape))
        self._senders: dict[str, Sender] = {}
        self._chunks = chunks

    def connect(self, info: StreamInfo) -> None:
        """Meet an engine, over one more transport."""
        sender = self._senders[info.transport] = Sender(self.spec, self._chunks, self.rank)
        sender.connect(info, CPU)

    def send(self, transport: str) -> str | None:
        """This end of an update; what went wrong."""
        return self._senders[transport].send([0])[0].error

    def watch(self) -> None:
        """Begin to watch this process's own memory."""
        self._watch = Watch(anonymous=True)

    def watched(self) -> tuple[float, float]:
        """See `Watch.stop`."""
        return self._watch.stop()


class Ranks:
    """All of them, and the engine that they stream to."""

    def __init__(self, path: Path, topology: Topology, process: EngineProcess) -> None:
        self.topology, self.engine = topology, process
        self.members = [Process(_serve, path, topology, rank) for rank in range(topology.world)]
        self._path, self._store = path, serve_store("127.0.0.1", TIMEOUT_S)
        process.wait(process.start("ready"), timeout_s=300)

    def connect(self, transport: str, bucket_bytes: int) -> None:
        """Meet the engine over one more transport."""
        info = StreamInfo(
            model_path=str(self._path),
            trainer=asdict(self.topology),
            engine=asdict(EngineTopology()),
            number=0,
            host="127.0.0.1",
            port=self._store.port,
            name=transport,
            transport=transport,
            bucket_bytes=bucket_bytes,
            dtype="float32",
            timeout_s=TIMEOUT_S,
        )
        joining = self.engine.start("join_stream", info.as_dict())
        self.call("connect", info)
        self.engine.wait(joining)
        self.engine.call(keep_end, transport)

    def update(self, transport: str) -> None:
        """One update over one of the transports."""
        self.engine.call(use_end, transport)
        receiving = self.engine.start("update_weights", 1)
        errors = self.call("send", transport)
        assert not any(errors), errors
        self.engine.wait(receiving)

    def call(self, method: Any, *args: Any) -> list[Any]:
        """On every rank at once."""
        calls = [member.start(method, *args) for member in self.members]
        return [
            member.wait(call, timeout_s=300)
            for member, call in zip(self.members, calls, strict=True)
        ]

    def close(self) -> None:
        """End the ranks."""
        for member in self.members:
            member.close()


def _serve(connection: Any, path: Path, topology: Topology, rank: int) -> None:
    answer_calls(connection, Rank(path, topology, rank))


def keep_end(engine: Any, transport: str) -> None:
    """Runs in the engine: remember the end that it has joined last."""

    def keep(worker: Any) -> None:
        found = vars(worker.weight_transfer_engine)
        ends = getattr(worker, "ends", {})
        worker.ends = {**ends, transport: {name: found[name] for name in END}}

    engine._llm.collective_rpc(keep)


def use_end(engine: Any, transport: str) -> None:
    """Runs in the engine: take that end from here on."""

    def use(worker: Any) -> None:
        vars(worker.weight_transfer_engine).update(worker.ends[transport])

    engine._llm.collective_rpc(use)
