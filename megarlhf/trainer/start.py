"""Commands with a driver: who keeps their processes, Ray or the ranks that torchrun started."""

from collections.abc import Callable
from functools import partial
from typing import Any

from megarlhf.cluster import torchrun_cluster
from megarlhf.cluster.processes import Opener
from megarlhf.config.schema import RLConfig
from megarlhf.trainer import generation, served_model
from megarlhf.trainer import rl as reinforcement


def rl(config: RLConfig) -> dict[str, Any]:
    """``megarlhf rl``; returns the run's summary, on the driver."""
    return _run(reinforcement.train, config)


def generate(config: RLConfig) -> dict[str, Any]:
    """``megarlhf generate``; returns the run's summary, on the driver."""
    return _run(generation.generate, config)


def serve_model(config: RLConfig, host: str, port: int, max_batch: int) -> dict[str, Any]:
    """``megarlhf serve-rm --model``; see `served_model.serve_model`."""
    serving = partial(served_model.serve_model, host=host, port=port, max_batch=max_batch)
    return _run(serving, config)


def _run(command: Callable[[RLConfig, Opener], dict[str, Any]], config: RLConfig) -> dict[str, Any]:
    if not torchrun_cluster.started_by_torchrun():
        from megarlhf.cluster.ray_cluster import ray_cluster  # Ray is loaded only where it is used

        return command(config, ray_cluster)
    with torchrun_cluster.torchrun() as processes:
        if processes is None:
            return {}  # this rank did what the driver asked for
        return command(torchrun_cluster.everywhere(config, processes.world), processes.open)
