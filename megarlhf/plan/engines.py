"""What a vLLM engine's rank keeps, and what a weight update sends, from the stream's own plans."""

import functools
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from megarlhf.config.schema import RLConfig
from megarlhf.models.build import DTYPES
from megarlhf.models.lora.adapter import AdapterSpec
from megarlhf.models.lora.wanted import adapters_of
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.topology import Topology
from megarlhf.plan.equal_layers import have_equal_layers, of_all_layers, with_layers
from megarlhf.plan.hardware import GIB, Calibration, Gpu
from megarlhf.plan.roles import Role
from megarlhf.sync.adapter_layout import adapted_parts, adapter_parameters
from megarlhf.sync.engine_layout import EngineTopology, engine_parameters
from megarlhf.sync.plan import numel, plan_stream
from megarlhf.trainer.engine_settings import engine_settings


@dataclass(frozen=True)
class EngineNeeds:
    """A rank of an engine.

    Attributes:
        ranks: Of one engine.
        count: Engines.
        weights: Bytes.
        token_bytes: Of the KV cache, a token.
        cache: Bytes that are left for the KV cache; negative where there are none.
        longest: Tokens of the longest sequence.
        running: Sequences in flight at most: what is asked for, or what the cache holds.
    """

    ranks: int
    count: int
    weights: int
    token_bytes: int
    cache: int
    longest: int
    running: int


@dataclass(frozen=True)
class StreamNeeds:
    """A weight update.

    Attributes:
        bucket: Bytes of the two buckets that exist at a time.
        most_sent: Bytes that a rank of the trainer sends at most.
        most_received: Bytes that a rank of an engine is sent at most.
        from_host: Bytes that a rank of an engine brings from its host's memory: the base of adapters.
    """

    bucket: int
    most_sent: int
    most_received: int
    from_host: int = 0


def engine_needs(
    config: RLConfig, directory: Path, gpu: Gpu, calibration: Calibration
) -> EngineNeeds:
    """Weights and KV cache of a rank of an engine.

    Args:
        config: The run's.
        directory: Of the model's ``config.json``.
        gpu: What it runs on.
        calibration: vLLM's own needs.

    Raises:
        UserError: See `engine_parameters`.
    """
    spec, settings = ModelSpec.read(directory), engine_settings(config)
    itemsize, topology = DTYPES[settings.dtype].itemsize, _topology(config)
    elements = _kept(directory, replace(topology, engines=1))
    if config.lora.is_on:
        adapters = adapter_parameters(_adapters(config, spec), topology, 0)
        elements += sum(math.prod(parameter.shape) for parameter in adapters)
    overhead = calibration.engine_gib + calibration.context_gib
    overhead += calibration.communication_gib if settings.tensor_parallel > 1 else 0
    room = gpu.nbytes * settings.gpu_memory_utilization - overhead * GIB
    cache = int(room - elements * itemsize)
    token_bytes = _token_bytes(spec, settings.tensor_parallel, itemsize)
    held = max(0, cache) // (token_bytes * settings.max_length)
    return EngineNeeds(
        ranks=settings.tensor_parallel,
        count=config.rollout.engines,
        weights=elements * itemsize,
        token_bytes=token_bytes,
        cache=cache,
        longest=settings.max_length,
        running=min(settings.max_sequences, held),
    )


@functools.lru_cache(maxsize=256)
def _kept(directory: Path, topology: EngineTopology) -> int:
    """Elements of the model on a rank of an engine."""

    def count(spec: ModelSpec) -> int:
        return sum(math.prod(each.shape) for each in engine_parameters(spec, topology, 0))

    return of_all_layers(ModelSpec.read(directory), count)


def stream_needs(config: RLConfig, actor: Role, *, exact: bool) -> StreamNeeds:
    """Bytes of a weight update, by the plan that both ends replay.

    Of equal layers a few are planned and the rest extrapolated, unless ``exact``.
    """
    itemsize = DTYPES[engine_settings(config).dtype].itemsize
    elements = config.stream.bucket_mib * 2**20 // itemsize
    topology, spec = actor.topology, actor.spec
    chunks = topology.pp * topology.vpp
    if exact or not have_equal_layers(spec) or spec.num_layers <= 3 * chunks:
        most = _most(config, spec, topology, elements)
    else:
        low, high = (
            _most(config, with_layers(spec, layers * chunks), _even(topology), elements)
            for layers in (1, 2)
        )
        times = spec.num_layers / chunks - 1
        most = [round(a + (b - a) * times) for a, b in zip(low, high, strict=True)]
    return StreamNeeds(
        2 * config.stream.bucket_mib * 2**20, *(elements * itemsize for elements in most)
    )


def _most(
    config: RLConfig, spec: ModelSpec, topology: Topology, elements: int
) -> tuple[int, int, int]:
    """Elements that a rank sends, that one is sent, and that one brings from its host, at most."""
    engine, merged = _topology(config), 0
    if not config.lora.is_on:
        buckets = plan_stream(spec, topology, engine, elements)
    else:  # which every engine merges into the base that it keeps on its host
        adapters = _adapters(config, spec)
        buckets = plan_stream(adapters, topology, engine, elements, adapter_parameters)
        changed = {part.parameter for part in adapted_parts(adapters, engine, 0)}
        kept = engine_parameters(spec, engine, 0)
        merged = sum(math.prod(each.shape) for each in kept if each.name in changed)
    sent, received = Counter[int](), Counter[tuple[int, int]]()
    for bucket in buckets:
        for worker, messages in bucket.messages.items():
            for sender, moves in messages.items():
                size = numel(moves)
                sent[sender] += size
                received[worker] += size
    return max(sent.values()), max(received.values()), merged


def _adapters(config: RLConfig, spec: ModelSpec) -> AdapterSpec:
    found = adapters_of(config.lora, spec, Topology(1), seed=0)
    assert found is not None
    return found.spec


def _topology(config: RLConfig) -> EngineTopology:
    rollout = config.rollout
    return EngineTopology(rollout.tensor_parallel, rollout.expert_parallel, rollout.engines)


def _even(topology: Topology) -> Topology:
    return replace(topology, chunk_layers=None)


def _token_bytes(spec: ModelSpec, ranks: int, itemsize: int) -> int:
    """Keys and values of a token on a rank; windows are not taken off."""
    settings = spec.settings
    groups = int(settings.get("num_query_groups") or settings["num_attention_heads"])
    own = max(1, groups // ranks)
    return 2 * spec.num_layers * own * int(settings["kv_channels"]) * itemsize
