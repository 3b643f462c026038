"""Model and optimizer to and from Megatron's distributed checkpoints, loadable under any layout.

Writing happens in the rank itself. Megatron's own writer forks two processes a rank and starts a
manager process at every save, which costs seconds and can leave orphans behind.
"""

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from megarlhf.errors import UserError
from megarlhf.parallel import device

if TYPE_CHECKING:
    from megarlhf.engine.model_engine import ModelEngine

device.prepare()
from megatron.core import dist_checkpointing, tensor_parallel  # noqa: E402
from megatron.core.dist_checkpointing.mapping import ShardedObject  # noqa: E402
from megatron.core.dist_checkpointing.strategies import filesystem_async  # noqa: E402
from megatron.core.dist_checkpointing.strategies.filesystem_async import (  # noqa: E402
    FileSystemWriterAsync,
)
from megatron.core.dist_checkpointing.strategies.torch import (  # noqa: E402
    TorchDistSaveShardedStrategy,
)

# The only optimizer sharding of 0.16.1 that loads under another layout.
_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}


def save(engine: "ModelEngine", directory: Path) -> None:
    """Write the engine's model, optimizer and random state into an existing directory.

    Collective over the engine's ranks. The directory is whole when every rank has returned.
    """
    dist_checkpointing.save(
        _state_dict(engine, loading=False),
        str(directory),
        sharded_strategy=_InProcessSave("torch_dist", 1, thread_count=1),
        content_metadata={**_METADATA, "world": engine.topology.world},
    )


def load(engine: "ModelEngine", directory: Path) -> None:
    """Restore what `save` wrote, under this engine's layout.

    Raises:
        UserError: The directory holds no whole checkpoint.
    """
    if not (directory / "metadata.json").is_file():
        raise UserError(
            "not a whole checkpoint: metadata.json is missing",
            where=str(directory),
            fix="remove the directory, so that the run goes on from the one before",
        )
    wanted = _state_dict(engine, loading=True)
    if dist_checkpointing.load_content_metadata(str(directory))["world"] != engine.topology.world:
        del wanted["random"]  # one state a rank: there is none for these ranks
    state = dist_checkpointing.load(wanted, str(directory))
    for index, chunk in enumerate(engine.chunks):
        chunk.load_state_dict(state[f"model{index}"])
    if engine.optimizer is not None:
        with torch.no_grad():
            engine.optimizer.load_state_dict(state["optimizer"])
    if "random" in state:
        torch.set_rng_state(state["random"]["cpu"])
        tensor_parallel.get_cuda_rng_tracker().set_states(state["random"]["tracker"])


def _state_dict(engine: "ModelEngine", *, loading: bool) -> dict[str, Any]:
    state: dict[str, Any] = {
        f"model{index}": chunk.sharded_state_dict(metadata={"dp_cp_group": engine.groups.dp_cp})
        for index, chunk in enumerate(engine.chunks)
    }
    if engine.optimizer is not None:
        models = state["model0"] if len(engine.chunks) == 1 else dict(state)
        state["optimizer"] = engine.optimizer.sharded_state_dict(
            models, is_loading=loading, metadata=_METADATA
        )
    random = {
        "cpu": torch.get_rng_state(),
        "tracker": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }
    world = engine.topology.world
    state["random"] = ShardedObject("random", random, (world,), (engine.rank,))
    return state


class _InProcessSave(TorchDistSaveShardedStrategy):
    """Megatron's own format and planner; the files are written by this process."""

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: Path) -> None:
        with _plain_results_queue():
            request = self.async_save(sharded_state_dict, checkpoint_dir)
        if request.async_fn is not None:
            _, _, results = request.async_fn_args
            transforms = request.async_fn.args[0]
            written: dict[int, Any] = {}
            for index, bucket in enumerate(request.preload_fn()):
                one: queue.Queue = queue.Queue()
                FileSystemWriterAsync.write_preloaded_data(
                    transforms, index, bucket, one, _Countdown(), use_fsync=True
                )
                _, outcome = one.get_nowait()
                if isinstance(outcome, Exception):
                    raise outcome
                written[index] = outcome
            results.put(written)
        torch.distributed.barrier()
        for finalize in request.finalize_fns:
            finalize()


class _Countdown:
    """What the writer of a forked process counts down; here nobody waits for it."""

    def get(self) -> None:
        """Take one."""

    def task_done(self) -> None:
        """Mark it done."""


@contextmanager
def _plain_results_queue() -> Iterator[None]:
    """megatron-core 0.16.1 starts a manager process just to pass the results within one process."""
    original = filesystem_async._get_write_results_queue
    filesystem_async._get_write_results_queue = queue.Queue
    try:
        yield
    finally:
        filesystem_async._get_write_results_queue = original
