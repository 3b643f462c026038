"""Model and optimizer to and from Megatron's distributed checkpoints, loadable under any layout."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from megarlhf.engine.checkpoint_reader import FAILURES, reading
from megarlhf.engine.optimizer import begin_state
from megarlhf.errors import cannot_write, disk_error

if TYPE_CHECKING:
    from megarlhf.engine.model_engine import ModelEngine

# The only optimizer sharding of 0.16.1 that loads under another layout.
_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}


def save(engine: "ModelEngine", directory: Path) -> None:
    """Write the engine's model, optimizer and random state into an existing directory.

    Collective over the engine's ranks. The directory is whole when every rank has returned.

    Raises:
        UserError: This rank cannot write: the disk is full, say.
    """
    _write(engine, _state_dict(engine, loading=False), directory)


def save_weights(engine: "ModelEngine", directory: Path) -> None:
    """Write the engine's model alone; see `save`."""
    _write(engine, _model_state(engine), directory)


def _write(engine: "ModelEngine", state: dict[str, Any], directory: Path) -> None:
    from megatron.core import dist_checkpointing

    from megarlhf.engine.checkpoint_writer import InProcessSave

    try:
        dist_checkpointing.save(
            state,
            str(directory),
            sharded_strategy=InProcessSave("torch_dist", 1, thread_count=1),
            content_metadata={**_METADATA, "world": engine.topology.world},
        )
    except FAILURES as error:
        if (reason := disk_error(error) or _refusal_of_disk(directory)) is None:
            raise
        raise cannot_write(reason, str(directory)) from error


def _refusal_of_disk(directory: Path) -> OSError | None:
    """What the disk says to another MiB: torch's own writer does not tell why it failed."""
    probe = directory / "probe"
    try:
        with probe.open("wb") as file:
            file.write(bytes(2**20))
            os.fsync(file.fileno())
    except OSError as error:
        return error
    finally:
        probe.unlink(missing_ok=True)
    return None


def load(engine: "ModelEngine", directory: Path) -> None:
    """Restore what `save` wrote, under this engine's layout.

    Raises:
        UserError: The directory holds no whole checkpoint, or one that cannot be read.
    """
    from megatron.core import dist_checkpointing, tensor_parallel

    wanted = _state_dict(engine, loading=True)
    with reading(directory):
        content = dist_checkpointing.load_content_metadata(str(directory))
        if content["world"] != engine.topology.world:
            del wanted["random"]  # one state a rank: there is none for these ranks
        state = dist_checkpointing.load(wanted, str(directory))
    _take_weights(engine, state)
    if engine.optimizer is not None:
        with torch.no_grad():
            engine.optimizer.load_state_dict(state["optimizer"])
    if "random" in state:
        torch.set_rng_state(state["random"]["cpu"])
        if state["random"].get("cuda") is not None:  # dropout of adapters draws from it
            torch.cuda.set_rng_state(state["random"]["cuda"])
        tensor_parallel.get_cuda_rng_tracker().set_states(state["random"]["tracker"])


def load_weights(engine: "ModelEngine", directory: Path) -> None:
    """Restore what `save_weights` wrote; see `load`."""
    from megatron.core import dist_checkpointing

    with reading(directory):
        state = dist_checkpointing.load(_model_state(engine), str(directory))
    _take_weights(engine, state)


def _take_weights(engine: "ModelEngine", state: dict[str, Any]) -> None:
    for index, chunk in enumerate(engine.chunks):
        chunk.load_state_dict(state[f"model{index}"], strict=engine.adapters is None)


def _model_state(engine: "ModelEngine") -> dict[str, Any]:
    return {
        f"model{index}": _parameters(engine, chunk) for index, chunk in enumerate(engine.chunks)
    }


def _state_dict(engine: "ModelEngine", *, loading: bool) -> dict[str, Any]:
    from megatron.core import tensor_parallel
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    state = _model_state(engine)
    if engine.optimizer is not None:
        begin_state(engine.optimizer)
        models = state["model0"] if len(engine.chunks) == 1 else dict(state)
        _count_padding_as_data(engine)
        state["optimizer"] = engine.optimizer.sharded_state_dict(
            models, is_loading=loading, metadata=_METADATA
        )
    random = {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "tracker": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }
    world = engine.topology.world
    state["random"] = ShardedObject("random", random, (world,), (engine.rank,))
    return state


def _parameters(engine: "ModelEngine", chunk: Any) -> dict[str, Any]:
    """A chunk's, in Megatron's description; where adapters are trained, only what is trained."""
    every = chunk.sharded_state_dict(metadata={"dp_cp_group": engine.groups.dp_cp})
    if engine.adapters is None:
        return every
    return {
        name: part
        for name, part in every.items()
        if torch.is_tensor(getattr(part, "data", None)) and part.data.requires_grad
    }


def _count_padding_as_data(engine: "ModelEngine") -> None:
    """Keep optimizer state in its place where a gradient buffer has several buckets.

    Tied embeddings in a pipeline have a bucket of their own. megatron-core 0.16.1 leaves the padding
    between buckets out where it gathers the state, but counts it where it cuts the parameters out
    of that: all behind the first bucket would be shifted, silently. Mended upstream in
    https://github.com/NVIDIA/Megatron-LM/pull/5077; without padding both agree.
    """
    for chunk in engine.wrapped:
        for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers):
            buffer.numel_unpadded = buffer.numel
            for bucket in buffer.buckets:
                bucket.numel_unpadded = bucket.grad_data.numel()
