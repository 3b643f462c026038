"""Where engines and the trainer's ranks meet, and by which transport."""

from dataclasses import asdict
from typing import Any

import ray

from megarlhf.cluster.ray_cluster import have_gpus
from megarlhf.cluster.worker_group import WorkerGroup, wait_for_all
from megarlhf.config.schema import RLConfig
from megarlhf.models.lora.wanted import adapters_of
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.topology import Topology
from megarlhf.sync.engine_layout import EngineTopology
from megarlhf.sync.link import StreamInfo
from megarlhf.sync.transports import choose


def engine_topology(config: RLConfig) -> EngineTopology:
    """The engines' layout."""
    rollout = config.rollout
    return EngineTopology(rollout.tensor_parallel, rollout.expert_parallel, rollout.engines)


class StreamLinks:
    """Makes links between a trainer's ranks and engines, each under a name of its own.

    Args:
        config: The run's configuration.
        trainer: The ranks.
    """

    def __init__(self, config: RLConfig, trainer: WorkerGroup) -> None:
        self._config, self._trainer = config, trainer
        self._made, self._adapters = 0, _adapters_of(config)
        self._port = ray.get(trainer.members[0].serve_stream.remote(trainer.host))
        nodes = ray.get([member.__ray_call__.remote(_node) for member in trainer.members])
        self._nodes = set(nodes)

    def open(self, engines: dict[int, Any]) -> None:
        """Meet engines, given by number.

        Raises:
            UserError: The wanted transport cannot be taken.
        """
        nodes = ray.get([engine.__ray_call__.remote(_node) for engine in engines.values()])
        infos = [
            self._info(number, one_node=self._nodes == {node})
            for number, node in zip(engines, nodes, strict=True)
        ]
        joining = [
            engine.join_stream.remote(info.as_dict())
            for engine, info in zip(engines.values(), infos, strict=True)
        ]
        wait_for_all([*self._trainer.call("open_stream", infos), *joining], self._timeout)

    @property
    def _timeout(self) -> float:
        return self._config.cluster.start_timeout_s

    def _info(self, number: int, *, one_node: bool) -> StreamInfo:
        config = self._config
        self._made += 1
        transport = choose(
            config.stream.transport,
            device="cuda" if have_gpus() else "cpu",
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


def _node(_: Any) -> str:
    """Runs in an actor: the node it is on."""
    return ray.get_runtime_context().get_node_id()
