"""A model in float64: exact gradients to compare with. Megatron's optimizers know no float64."""

from typing import Any

import torch

from megarlhf.config.schema import OptimizerConfig
from megarlhf.engine.model_engine import ModelEngine


class DoubleEngine(ModelEngine):
    """A `ModelEngine` with gradients in float64 and no optimizer: `train_step` changes nothing."""

    def _make_trainable(self, settings: OptimizerConfig) -> None:
        from megatron.core.distributed import (
            DistributedDataParallel,
            DistributedDataParallelConfig,
            finalize_model_grads,
        )

        ddp_config = DistributedDataParallelConfig(
            grad_reduce_in_fp32=False, use_distributed_optimizer=False
        )
        self.wrapped = [
            DistributedDataParallel(
                self.config,
                ddp_config,
                chunk,
                disable_bucketing=index > 0,
                pg_collection=self.groups,
            )
            for index, chunk in enumerate(self.chunks)
        ]
        self.optimizer = _NoOptimizer()

        def finalize(model: list[Any], num_tokens: Any = None, **kwargs: Any) -> None:
            finalize_model_grads(model, None, **kwargs)

        self.config.finalize_model_grads_func = finalize


class _NoOptimizer:
    """Stands where Megatron's optimizer would."""

    param_groups: tuple = ()

    def zero_grad(self) -> None:
        """There is nothing of its own to clear."""

    def step(self) -> tuple[bool, torch.Tensor, None]:
        """Change nothing; the gradient norm is not computed."""
        return True, torch.tensor(float("nan")), None
