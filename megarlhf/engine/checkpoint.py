"""Model and optimizer to and from Megatron's distributed checkpoints, loadable under any layout."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from megarlhf.engine.optimizer import begin_state
from megarlhf.errors import UserError, cannot_write, disk_error

if TYPE_CHECKING:
    from megarlhf.engine.model_engine import ModelEngine

_FAILURES = (Exception, CheckpointException)  # torch's own is no Exception

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
    except _FAILURES as error:
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
    _check_whole(directory)
    from megatron.core import dist_checkpointing, tensor_parallel

    wanted = _state_dict(engine, loading=True)
    with _damage_is_an_error(directory):
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
    _check_whole(directory)
    from megatron.core import dist_checkpointing

    with _damage_is_an_error(directory):
        state = dist_checkpointing.load(_model_state(engine), str(directory))
    _take_weights(engine, state)


def _check_whole(directory: Path) -> None:
    if not (directory / "metadata.json").is_file():
        raise UserError(
            "not a whole checkpoint: metadata.json is missing",
            where=str(directory),
            fix=_to_go_back(directory),
        )


@contextlib.contextmanager
def _damage_is_an_error(directory: Path) -> Iterator[None]:
    """Whatever torch and Megatron raise where a file is damaged or missing, as a `UserError`."""
    try:
        yield
    except _FAILURES as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"the checkpoint cannot be read: {lines[-1]}",
            where=str(directory),
            fix=_to_go_back(directory),
        ) from error


def _to_go_back(directory: Path) -> str:
    """What to do about a checkpoint that is no good; it may be a part of a step's."""
    whole = next(
        (d for d in (directory, *directory.parents) if d.name.startswith("step-")), directory
    )
    return f"if it is damaged remove {whole}, and the run goes on from the one before"


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
