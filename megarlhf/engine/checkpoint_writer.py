"""Write a distributed checkpoint's files from within the rank.

Megatron's own writer forks two processes a rank and starts a manager process at every save, which
costs seconds and can leave orphans behind.
"""

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from megarlhf.parallel import device

device.prepare()
from megatron.core.dist_checkpointing.strategies import filesystem_async  # noqa: E402
from megatron.core.dist_checkpointing.strategies.filesystem_async import (  # noqa: E402
    FileSystemWriterAsync,
)
from megatron.core.dist_checkpointing.strategies.torch import (  # noqa: E402
    TorchDistSaveShardedStrategy,
)


class InProcessSave(TorchDistSaveShardedStrategy):
    """Megatron's own format and planner; the files are written by this process."""

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: Path) -> None:
        """Write this rank's files; collective, returns when all are written."""
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
