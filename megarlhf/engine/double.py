"""A model in float64: exact gradients to compare with. Megatron's optimizers know no float64."""

from typing import Any

from megarlhf.config.schema import OptimizerConfig
from megarlhf.engine.model_engine import ModelEngine


class DoubleEngine(ModelEngine):
    """A `ModelEngine` without an optimizer: `train_step` computes gradients and changes nothing."""

    def _make_optimizer(self, settings: OptimizerConfig) -> Any:
        return _NoOptimizer()

    def _step(self, loss: float) -> tuple[float, bool]:
        return float("nan"), True


class _NoOptimizer:
    """Stands where Megatron's optimizer would."""

    param_groups: tuple = ()

    def zero_grad(self) -> None:
        """There is nothing of its own to clear."""
