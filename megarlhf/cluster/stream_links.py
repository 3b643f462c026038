"""Connecting engines and the trainer's ranks: where they meet, and by which transport."""

from dataclasses import asdict
from typing import Any

from megarlhf.cluster.failures import wait_for_all
from megarlhf.cluster.processes import Processes
from megarlhf.cluster.worker_group import WorkerGroup
from megarlhf.config.schema import RLConfig
from megarlhf.models.lora.wanted import adapters_of
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.topology import Topology
from megarlhf.sync.engine_layout import EngineTopology
from megarlhf.sync.link import StreamInfo
from megarlhf.sync.transports import TRANSPORTS, choose
from megarlhf.sync.vllm_transport import check_m2n


def engine_topology(config: RLConfig) -> EngineTopology:
    """The engines' layout."""
    rollout = config.rollout
    return EngineTopology(rollout.tensor_parallel, rollout.expert_parallel, rollout.engines)


def check_transport(config: RLConfig, spec: ModelSpec, *, on_gpu: bool) -> None:
    """Refuse a ``stream.transport`` that cannot work, as far as is known before anything is built.

    Args:
        config: The run's configuration.
        spec: The trained model.
        on_gpu: Whether the run's machines have GPUs.

    Raises:
        UserError: It cannot work.
    """
    name = choose(
        config.stream.transport,
        device="cuda" if on_gpu else "cpu",
        one_node=True,  # known when all is placed: `StreamLinks.open` asks again
        colocated=config.rollout.placement == "colocated",
    )
    if TRANSPORTS[name].of_vllm:
        topology = Topology.of(config.model.parallel, config.cluster.actor_ranks)
        check_m2n(spec, topology, adapters=config.lora.is_on, verify=config.stream.verify)


class StreamLinks:
    """Makes links between a trainer's ranks and engines, each under a name of its own.

    Args:
        config: The run's configuration.
        trainer: The ranks.
        processes: Where they and the engines run.
    """

    def __init__(self, config: RLConfig, trainer: WorkerGroup, processes: Processes) -> None:
        self._config, self._trainer, self._processes = config, trainer, processes
        self._made, self._adapters = 0, _adapters_of(config)
        self._port = processes.result(trainer.members[0].serve_stream.remote(trainer.host))
        self._nodes = {processes.node(member) for member in trainer.members}

    def open(self, engines: dict[int, Any]) -> None:
        """Meet engines, given by number.

        Raises:
            UserError: The wanted transport cannot be taken.
        """
        infos = [
            self._info(number, one_node=self._nodes == {self._processes.node(engine)})
            for number, engine in engines.items()
        ]
        joining = [
            engine.join_stream.remote(info.as_dict())
            for engine, info in zip(engines.values(), infos, strict=True)
        ]
        calls = [*self._trainer.call("open_stream", infos), *joining]
        wait_for_all(calls, self._processes, self._config.cluster.start_timeout_s)

    def _info(self, number: int, *, one_node: bool) -> StreamInfo:
        config = self._config
        self._made += 1
        transport = choose(
            config.stream.transport,
            device="cuda" if self._processes.on_gpu else "cpu",
            one_node=one_node,
            colocated=config.rollout.placement == "colocated",
        )
        return StreamInfo(
            model_path=config.model.path,
            trainer=asdict(Topology.of(config.model.parallel, config.cluster.actor_ranks)),
            engine=asdict(engine_topology(config)),
            number=number,
            host=self._trainer.host,
            port=self._port,
            name=f"engine{number}-link{self._made}",
            transport=transport,
            bucket_bytes=config.stream.bucket_mib * 2**20,
            dtype=config.rollout.dtype or config.model.dtype,
            timeout_s=config.cluster.stream_timeout_s,
            adapters=self._adapters,
            adapter_dtype=config.model.dtype,
        )


def _adapters_of(config: RLConfig) -> dict[str, Any] | None:
    """The adapters that are trained, as `StreamInfo` has them."""
    if not config.lora.is_on:
        return None
    topology = Topology.of(config.model.parallel, config.cluster.actor_ranks)
    spec = ModelSpec.read(config.model.path)
    return asdict(adapters_of(config.lora, spec, topology, config.train.seed).spec.adapter)
