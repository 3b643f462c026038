"""A real engine in a process of its own, and the trainer's end of its stream in this one."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from megarlhf.data.records import Prompt
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import parameters_of
from megarlhf.parallel.stores import serve_store
from megarlhf.parallel.topology import Topology
from megarlhf.rollout.settings import EngineSettings, Sampling, engine_environment
from megarlhf.sync.engine_layout import EngineTopology
from megarlhf.sync.fingerprints import compare
from megarlhf.sync.link import StreamInfo
from megarlhf.sync.sender import Sender
from tests.models.tiny import StandIn

CPU = torch.device("cpu")
GREEDY = Sampling(1, 0.0, 1.0, -1, 8)


def settings_of(path: Path, **changed: Any) -> EngineSettings:
    """Small settings of an engine for a model."""
    settings = EngineSettings(
        model_path=str(path),
        dtype="float32",
        tensor_parallel=1,
        expert_parallel=False,
        during_generation="keep",
        can_sleep=False,
        max_length=64,
        max_sequences=16,
        gpu_memory_utilization=0.5,
        seed=1,
    )
    return replace(settings, **changed)


class Process:
    """An object in a new process; `call` runs its methods there, `start` without waiting.

    Args:
        serve: Runs in the process, with a connection and the arguments: see `answer_calls`.
        args: Further ones.
    """

    start_method = "spawn"

    def __init__(self, serve: Callable, *args: Any) -> None:
        context = multiprocessing.get_context(self.start_method)
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, *args))
        self.process.start()
        theirs.close()
        self._calls = 0
        self._answers: dict[int, Any] = {}

    def start(self, method: str | Callable, *args: Any) -> int:
        """Begin a call; a function is called with the object."""
        self._calls += 1
        self._connection.send((self._calls, method, args))
        return self._calls

    def wait(self, call: int, timeout_s: float = 100) -> Any:
        """What a call returned."""
        while call not in self._answers:
            assert self._connection.poll(timeout_s), "the process does not answer"
            number, answer = self._connection.recv()
            self._answers[number] = answer
        answer = self._answers.pop(call)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def call(self, method: str | Callable, *args: Any) -> Any:
        """Run a method and wait."""
        return self.wait(self.start(method, *args))

    def close(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.join()


class EngineProcess(Process):
    """A `VllmEngine` in a new process."""

    def __init__(self, settings: EngineSettings, *, packed: bool = True) -> None:
        on_gpu = torch.cuda.is_available()
        super().__init__(_serve, settings, engine_environment(1, on_gpu=on_gpu, packed=packed))


def _serve(connection: Any, settings: EngineSettings, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    from megarlhf.rollout.engine import VllmEngine

    answer_calls(connection, VllmEngine(settings))


def answer_calls(connection: Any, served: Any) -> None:
    """Until the other end is closed, each call in a thread of its own."""

    def answer(number: int, method: str | Callable, args: tuple) -> None:
        try:
            bound = getattr(served, method) if isinstance(method, str) else None
            connection.send((number, bound(*args) if bound else method(served, *args)))
        except BaseException as error:
            connection.send((number, error))

    while True:
        try:
            call = connection.recv()
        except EOFError:
            os._exit(0)
        Thread(target=answer, args=call, daemon=True).start()


class Trainer:
    """Ranks of a trainer without Megatron: what each would hold of given tensors, and its sender."""

    def __init__(
        self,
        path: Path,
        topology: Topology,
        engine: EngineTopology,
        device: torch.device = CPU,
        **settings: Any,
    ) -> None:
        self.spec = ModelSpec.read(path)
        self.topology, self.engine, self._device = topology, engine, device
        self._store = serve_store("127.0.0.1", timeout_s=60)
        common = {"transport": "gloo", "bucket_bytes": 100_000, "timeout_s": 60}
        self._settings = {**common, "dtype": "float32", **settings}
        self._links = 0
        self._chunks = []
        for rank in range(topology.world):
            held = parameters_of(self.spec, topology, rank)
            parts = [[p for p in held if p.chunk == chunk] for chunk in range(topology.vpp)]
            self._chunks.append([StandIn(part, device) for part in parts])
        self.senders = [Sender(self.spec, chunks, rank) for rank, chunks in enumerate(self._chunks)]

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Set every rank's parameters."""
        for rank, chunks in enumerate(self._chunks):
            live = [dict(chunk.named_parameters()) for chunk in chunks]
            for parameter in parameters_of(self.spec, self.topology, rank):
                for piece in parameter.pieces:
                    values = tensors[parameter.sources[piece.source]][piece.hf.slices]
                    live[parameter.chunk][parameter.name][piece.local.slices] = values

    def info(self, number: int) -> StreamInfo:
        """Of a new link to an engine."""
        self._links += 1
        return StreamInfo(
            model_path=str(self.spec.path),
            trainer=asdict(self.topology),
            engine=asdict(self.engine),
            number=number,
            host="127.0.0.1",
            port=self._store.port,
            name=f"link{self._links}",
            **self._settings,
        )

    def connect(self, number: int, engine: EngineProcess) -> None:
        """Meet an engine."""
        engine.wait(engine.start("ready"), timeout_s=300)
        info = self.info(number)
        joining = engine.start("join_stream", info.as_dict())
        self._on_every_rank(lambda sender: sender.connect(info, self._device))
        engine.wait(joining)

    def update(self, engines: dict[int, EngineProcess], version: int) -> list[dict[int, Any]]:
        """Stream to engines; what every rank sent."""
        receiving = [engine.start("update_weights", version) for engine in engines.values()]
        sent = self.send(list(engines))
        for engine, call in zip(engines.values(), receiving, strict=True):
            engine.wait(call)
        return sent

    def send(self, numbers: Sequence[int]) -> list[dict[int, Any]]:
        """Only this end of an update."""
        return self._on_every_rank(lambda sender: sender.send(numbers))

    def verify(self, engines: dict[int, EngineProcess]) -> int:
        """Compare fingerprints; how many rectangles they are of."""
        of_ranks = [sender.fingerprints(list(engines)) for sender in self.senders]
        count = 0
        for number, engine in engines.items():
            for worker, prints in enumerate(engine.call("stream_fingerprints")):
                expected = {}
                for found in of_ranks:
                    expected |= found.get((number, worker), {})
                compare(expected, prints, f"engine {number}")
                count += len(prints)
        return count

    def _on_every_rank(self, act: Callable) -> list[Any]:
        results: list[Any] = [None] * len(self.senders)

        def run(rank: int) -> None:
            results[rank] = act(self.senders[rank])

        threads = [Thread(target=run, args=(rank,)) for rank in range(len(self.senders))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def prompts_of(*token_ids: Sequence[int]) -> list[Prompt]:
    """Prompts without a text."""
    return [Prompt(index, "", tuple(ids)) for index, ids in enumerate(token_ids)]
