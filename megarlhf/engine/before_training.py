"""A model with adapters as it was before its first step: the reference, without a second copy."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from megarlhf.engine.model_engine import ModelEngine


class BeforeTraining:
    """Runs an engine with its adapters off (or as they were loaded).

    Args:
        engine: A model with adapters.
    """

    def __init__(self, engine: ModelEngine) -> None:
        assert engine.switch is not None
        self._engine, self._switch = engine, engine.switch

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._engine.device

    def logprobs(self, *args: Any, **kwargs: Any) -> dict[int, list[float]]:
        """See `ModelEngine.logprobs`."""
        with self._off():
            return self._engine.logprobs(*args, **kwargs)

    def offload(self, *parts: str) -> int:
        """Nothing: its memory is the engine's."""
        return 0

    def reload(self) -> None:
        """Nothing: see `offload`."""

    @contextmanager
    def _off(self) -> Iterator[None]:
        self._switch.is_reference = True
        try:
            yield
        finally:
            self._switch.is_reference = False


def before_training(
    engine: ModelEngine, build: Callable[[], ModelEngine]
) -> ModelEngine | BeforeTraining:
    """A trained model as it is before its first step.

    Args:
        engine: The trained model.
        build: Makes it once more, for one whose own parameters are trained.
    """
    return build() if engine.switch is None else BeforeTraining(engine)
