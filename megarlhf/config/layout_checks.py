"""Rules that hold between a layout and the model's ``config.json``; standard library only."""

from collections.abc import Sequence
from typing import Any

from megarlhf.config.numbers import any_of, divisors, nearest_divisors
from megarlhf.config.schema import ParallelConfig, RLConfig
from megarlhf.errors import UserError

EXPERT_COUNT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts")  # in config.json


def check_parallel(
    parallel: ParallelConfig,
    model: dict[str, Any],
    world_size: int,
    world_name: str,
    key: str = "model.parallel",
) -> None:
    """The model can be laid out over ``world_size`` ranks.

    Args:
        parallel: The layout.
        model: Its ``config.json``.
        world_size: Ranks.
        world_name: What sets their number.
        key: Where the layout is in the configuration.
    """
    check_tensor(parallel, model, world_size, key)
    check_pipeline(parallel, model, world_size, key)
    check_expert(parallel, model, world_size, key)
    check_world(parallel, world_size, world_name, key)


def check_tensor(
    parallel: ParallelConfig, model: dict[str, Any], world_size: int, key: str
) -> None:
    """Tensor parallelism cuts heads and the MLP evenly; sequence parallelism comes with it."""
    sizes = {
        name: size
        for name in (
            "num_attention_heads",
            "intermediate_size",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
        )
        if (size := size_of(model, name)) is not None
    }
    groups = size_of(model, "num_key_value_heads")

    def problem(tensor: int) -> str | None:
        for name, size in sizes.items():
            if size % tensor:
                return f"must divide the model's {name} ({size})"
        if groups and groups % tensor and tensor % groups:
            return f"must divide the model's num_key_value_heads ({groups}), or be a multiple of it"
        if groups and 2 * groups * _head_size(model) % tensor:
            return f"must divide the {2 * groups * _head_size(model)} rows of keys and values"
        return None

    if found := problem(parallel.tensor):
        choices = [size for size in range(1, world_size + 1) if problem(size) is None]
        raise UserError(
            f"{found}, got {parallel.tensor}",
            where=f"{key}.tensor",
            fix=f"use {any_of(choices)}",
        )
    if parallel.sequence and parallel.tensor == 1:
        raise UserError(
            f"needs {key}.tensor > 1",
            where=f"{key}.sequence",
            fix=f"set {key}.sequence=false, or raise {key}.tensor",
        )


def check_pipeline(
    parallel: ParallelConfig, model: dict[str, Any], world_size: int, key: str
) -> None:
    """Each model chunk of each pipeline stage gets a layer."""
    stages, chunks = parallel.pipeline, parallel.virtual_pipeline
    if chunks > 1 and stages == 1:
        raise UserError(
            f"needs {key}.pipeline > 1",
            where=f"{key}.virtual_pipeline",
            fix=f"set {key}.virtual_pipeline=1, or raise {key}.pipeline",
        )
    layers = size_of(model, "num_hidden_layers")
    if layers is None:
        return
    if parallel.chunk_layers is not None:
        check_chunk_layers(parallel.chunk_layers, layers, stages * chunks, key)
    if stages > layers:
        raise UserError(
            f"must be at most the model's num_hidden_layers ({layers}), got {stages}",
            where=f"{key}.pipeline",
            fix=f"use {min(layers, world_size)} or less",
        )
    if stages * chunks > layers:
        raise UserError(
            f"must leave each of {stages} stages' chunks one of the {layers} layers, got {chunks}",
            where=f"{key}.virtual_pipeline",
            fix=f"use {layers // stages} or less",
        )


def check_chunk_layers(
    counts: Sequence[int], num_layers: int, chunks: int, key: str = "model.parallel"
) -> None:
    """A given cut of the layers belongs to the model and its pipeline.

    Raises:
        UserError: The counts are not one a chunk, not positive, or do not add up.
    """
    if len(counts) != chunks or min(counts) < 1 or sum(counts) != num_layers:
        raise UserError(
            f"must be {chunks} positive numbers (pipeline * virtual_pipeline) that add up to the "
            f"model's {num_layers} layers, got {list(counts)}",
            where=f"{key}.chunk_layers",
            fix="leave it out for an even cut",
        )


def check_expert(
    parallel: ParallelConfig, model: dict[str, Any], world_size: int, key: str
) -> None:
    """Expert parallelism cuts a mixture of experts evenly."""
    setting = f"{key}.expert"
    counts = [count for name in EXPERT_COUNT_KEYS if (count := size_of(model, name))]
    if not counts:
        if parallel.expert > 1:
            raise UserError(
                f"the model has no experts, got {parallel.expert}",
                where=setting,
                fix=f"set {setting}=1",
            )
        return
    if counts[0] % parallel.expert:
        raise UserError(
            f"must divide the model's {counts[0]} experts, got {parallel.expert}",
            where=setting,
            fix=f"use {any_of(divisors(counts[:1], world_size))}",
        )
    if parallel.tensor > 1 and not parallel.sequence:  # Megatron-Core's MoELayer refuses to train
        raise UserError(
            f"must be true for a mixture of experts with {key}.tensor > 1",
            where=f"{key}.sequence",
            fix=f"set {key}.sequence=true",
        )


def check_world(parallel: ParallelConfig, world_size: int, world_name: str, key: str) -> None:
    """The ranks hold a whole number of models, and each tensor rank's peers of expert groups."""
    ranks = parallel.tensor * parallel.pipeline * parallel.context
    if world_size % ranks:
        below = world_size // ranks * ranks
        choices = [number for number in (below, below + ranks) if number > 0]
        raise UserError(
            f"must be a multiple of {ranks} ({key}.tensor * pipeline * context), got {world_size}",
            where=world_name,
            fix=f"use {any_of(choices)}, or change {key}",
        )
    plane = world_size // (parallel.tensor * parallel.pipeline)  # context times data
    if plane % parallel.expert:
        raise UserError(
            f"must divide context * data parallelism ({plane} with {world_size} ranks), "
            f"got {parallel.expert}",
            where=f"{key}.expert",
            fix=f"use {any_of(nearest_divisors(plane, parallel.expert))}, or change {world_name}",
        )


def check_engine_heads(config: RLConfig, model: dict[str, Any]) -> None:
    """vLLM's tensor parallelism cuts the attention heads evenly."""
    heads, ranks = size_of(model, "num_attention_heads"), config.rollout.tensor_parallel
    if heads is not None and heads % ranks:
        raise UserError(
            f"must divide the model's num_attention_heads ({heads}), got {ranks}",
            where="rollout.tensor_parallel",
            fix=f"use {any_of(divisors([heads], heads))}",
        )


def check_engine_experts(config: RLConfig, model: dict[str, Any]) -> None:
    """vLLM's expert parallelism has experts to deal."""
    if config.rollout.expert_parallel and not any(size_of(model, n) for n in EXPERT_COUNT_KEYS):
        raise UserError(
            "the model has no experts",
            where="rollout.expert_parallel",
            fix="leave it out",
        )


def size_of(model: dict[str, Any], name: str) -> int | None:
    """A number of ``config.json``; None where it is not given."""
    value = model.get(name)
    return value if isinstance(value, int) else None


def _head_size(model: dict[str, Any]) -> int:
    """Width of an attention head; 1 where ``config.json`` does not say."""
    if (size := size_of(model, "head_dim")) is not None:
        return size
    return (size_of(model, "hidden_size") or 1) // (size_of(model, "num_attention_heads") or 1) or 1
