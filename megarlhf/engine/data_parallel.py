"""Megatron's data parallelism around a rank's model chunks: gradient buffers and their reduction."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer import TransformerConfig


def wrap(
    chunks: Sequence[nn.Module],
    config: "TransformerConfig",
    groups: "ProcessGroupCollection",
    *,
    overlap: bool,
) -> list[Any]:
    """Each chunk in DistributedDataParallel, set up in the configuration that the schedules read.

    Gradients are kept and reduced in fp32 and sharded over the replicas by the distributed optimizer; a
    model in float64, which has no optimizer, keeps and reduces them whole and in float64.

    Args:
        chunks: This rank's model chunks.
        config: Their configuration; its hooks are set.
        groups: Process groups.
        overlap: Reduce gradients during the backward pass and gather parameters during the next
            forward pass. Until then parameters are stale: see `gather_parameters`.
    """
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )

    is_double = config.params_dtype == torch.float64
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=not is_double,
        use_distributed_optimizer=not is_double,
        overlap_grad_reduce=overlap,
        overlap_param_gather=overlap and not is_double,
    )
    wrapped = [
        DistributedDataParallel(
            config, ddp_config, chunk, disable_bucketing=index > 0, pg_collection=groups
        )
        for index, chunk in enumerate(chunks)
    ]
    if overlap:
        hooks = [model.no_sync for model in wrapped]
        config.no_sync_func = hooks if len(hooks) > 1 else hooks[0]

    def finalize(model: list[Any], num_tokens: Any = None, **kwargs: Any) -> None:
        # The loss is divided already, by the global count: no second division here.
        finalize_model_grads(model, None, **kwargs)

    config.finalize_model_grads_func = finalize
    return wrapped


def gather_parameters(wrapped: Sequence[Any]) -> None:
    """Finish an overlapped gather, so that parameters may be read. Collective over the replicas."""
    for model in wrapped:
        if not getattr(model, "use_forward_hook", False):
            continue
        for group in (*model.bucket_groups, *model.expert_parallel_bucket_groups):
            if group.param_gather_handle is not None or not group.param_gather_dispatched:
                group.start_param_sync(force_sync=True)
