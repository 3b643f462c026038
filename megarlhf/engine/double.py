"""A model in float64: exact gradients to compare with. Megatron's optimizers know no float64."""

from typing import Any

import torch

from megarlhf.config.schema import OptimizerConfig
from megarlhf.engine.model_engine import ModelEngine


class DoubleEngine(ModelEngine):
    """A `ModelEngine` without an optimizer: `train_step` computes gradients and changes nothing."""

    def _make_optimizer(self, settings: OptimizerConfig) -> Any:
        return _NoOptimizer()


class _NoOptimizer:
    """Stands where Megatron's optimizer would."""

    param_groups: tuple = ()

    def zero_grad(self) -> None:
        """There is nothing of its own to clear."""

    def step(self) -> tuple[bool, torch.Tensor, None]:
        """Change nothing; the gradient norm is not computed."""
        return True, torch.tensor(float("nan")), None
