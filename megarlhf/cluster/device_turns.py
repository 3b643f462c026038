"""Whose turn it is on the devices: the trainer's or the engines' (`rollout.placement`)."""

from collections.abc import Callable
from typing import Protocol

from megarlhf.cluster.residents import Residents
from megarlhf.cluster.worker_group import WorkerGroup
from megarlhf.config.schema import RLConfig


class Engines(Protocol):
    """What is wanted of an `EngineGroup`."""

    version: int | None

    def update(self, version: int) -> int:
        """See `EngineGroup.update`."""

    def sleep(self) -> None:
        """See `EngineGroup.sleep`."""

    def wake(self, part: str) -> None:
        """See `EngineGroup.wake`."""


class Separate:
    """Trainer and engines have memory of their own: nothing has to be put away.

    Args:
        engines: The engines.
    """

    def __init__(self, engines: Engines) -> None:
        self._engines = engines

    def to_trainer(self) -> None:
        """Hand the devices to the trainer's ranks."""

    def to_engines(self) -> None:
        """Hand the devices to the engines."""

    def update(self, version: int) -> int:
        """Stream the trainer's weights, then hand the devices to the engines. Returns the bytes sent."""
        return self._engines.update(version)


class Colocated(Separate):
    """Whoever does not compute puts its memory away.

    In the order that keeps the peak lowest: an engine's weights come back when gradients and optimizer
    state are away, its KV cache when the trainer's weights are.

    Args:
        trainer: The trainer's ranks.
        engines: The engines.
        residents: The models on the engines' devices, the trainer's among them.
    """

    def __init__(self, trainer: WorkerGroup, engines: Engines, residents: Residents) -> None:
        super().__init__(engines)
        self._trainer, self._residents = trainer, residents
        self._engines_awake = True

    def to_trainer(self) -> None:
        """See `Separate.to_trainer`; a model's memory comes back when it is called."""
        if self._engines_awake:
            self._engines.sleep()
            self._engines_awake = False

    def to_engines(self) -> None:
        """See `Separate.to_engines`."""
        if not self._engines_awake:
            assert self._engines.version is not None
            self.update(self._engines.version)

    def update(self, version: int) -> int:
        """See `Separate.update`."""
        self._residents.keep_weights(self._trainer)
        if not self._engines_awake:
            self._engines.wake("weights")
        sent = self._engines.update(version)
        self._residents.leave()
        if not self._engines_awake:
            self._engines.wake("kv_cache")
        self._engines_awake = True
        return sent


def by_turns_on_gpus(config: RLConfig, *, on_gpu: bool) -> bool:
    """Whether an engine may only start where the models' memory is away.

    vLLM measures how much of its GPU is free, and refuses to start where that changes meanwhile.
    """
    return on_gpu and config.rollout.placement == "colocated"


def device_turns(
    config: RLConfig,
    trainer: WorkerGroup,
    engines: Engines,
    note: Callable[[str], None],
    *,
    on_gpu: bool,
) -> Separate:
    """The turns that ``rollout.placement`` asks for."""
    if config.rollout.placement == "separate":
        return Separate(engines)
    if not on_gpu:
        note("colocated on CPUs: vLLM's engines sleep without giving back memory")
    assert trainer.residents is not None  # it shares the engines' devices
    return Colocated(trainer, engines, trainer.residents)
