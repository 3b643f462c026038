"""Who has which GPUs: what a search tries beside the trainer's layouts."""

import math
from collections.abc import Iterator
from typing import Any

from megarlhf.algo import registry
from megarlhf.config.schema import RLConfig
from megarlhf.errors import UserError
from megarlhf.plan.advice import Change, changed
from megarlhf.plan.engine_memory import FEW_RUNNING
from megarlhf.plan.engines import engine_needs
from megarlhf.plan.hardware import GIB
from megarlhf.plan.subject import Subject

SIZES = (1, 2, 4, 8)  # of an engine
SLEEPING = 3  # processes that may lie beside an engine's
SEPARATE = 1.2  # roughly, how much longer a step is with engines on GPUs of their own


def within_limit(subject: Subject) -> Change:
    """A share of the GPUs for engines that leaves them below a limit, beside processes that sleep."""
    config, c = subject.config, subject.calibration
    if not isinstance(config, RLConfig) or subject.memory == subject.gpu.nbytes:
        return {}
    asleep = SLEEPING * (c.context_gib + c.communication_gib) + c.workspace_gib
    most = math.floor(100 * (subject.memory - asleep * GIB) / subject.gpu.nbytes) / 100
    if config.rollout.gpu_memory_utilization <= most:
        return {}
    return {"rollout.gpu_memory_utilization": max(0.01, most)}


def placements(subject: Subject) -> Iterator[tuple[float, Change]]:
    """Who has how many GPUs: engines on the trainer's, or on some of their own."""
    config, gpus = subject.config, subject.gpus
    if not isinstance(config, RLConfig):
        yield 1.0, {}
        return
    cluster = config.cluster
    if cluster.colocate or cluster.reference_ranks is not None or config.reward.models:
        yield 1.0, {}  # as it is: who else has GPUs is the run's own affair
        return
    critic = has_critic(config)
    for tensor in _engine_sizes(subject):
        if not config.rollout.async_steps:
            trained = gpus // 2 if critic else gpus
            yield 1.0, _placement("colocated", trained, critic, trained // tensor, tensor)
        for share in (1 / 8, 1 / 4, 1 / 2):
            engines = int(gpus * share) // tensor
            rest = gpus - engines * tensor
            if engines:
                own = rest // 2 if critic else rest
                yield SEPARATE, _placement("separate", own, critic, engines, tensor)


def _placement(kind: str, ranks: int, critic: bool, engines: int, tensor: int) -> Change:
    return {
        "rollout.placement": kind,
        "cluster.actor_ranks": ranks,
        **({"cluster.critic_ranks": ranks} if critic else {}),
        "rollout.engines": engines,
        "rollout.tensor_parallel": tensor,
    }


def _engine_sizes(subject: Subject) -> list[int]:
    """The two smallest with room for enough sequences: larger ones only read the weights faster."""
    directory = subject.shape_of(subject.config.model.path)
    enough = []
    for tensor in (size for size in SIZES if size <= subject.gpus_per_node):
        config: Any = changed(subject, {"rollout.tensor_parallel": tensor}).config
        try:
            needs = engine_needs(config, directory, subject.gpu, subject.calibration)
        except UserError:
            continue
        if needs.running >= FEW_RUNNING:
            enough.append(tensor)
    return enough[:2]


def has_critic(config: RLConfig) -> bool:
    """Whether the run's algorithm has one."""
    return registry.find(config.algorithm.name, config.algorithm.file).needs_critic
