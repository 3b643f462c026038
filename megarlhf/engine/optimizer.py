"""Megatron's distributed AdamW over a rank's wrapped model chunks."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from megarlhf.config.schema import OptimizerConfig
from megarlhf.engine import adam, gradient_norm, host_adam, host_share
from megarlhf.engine.host_adam import HostAdam

if TYPE_CHECKING:
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer import TransformerConfig


def make_optimizer(
    settings: OptimizerConfig,
    config: "TransformerConfig",
    wrapped: Sequence[Any],
    groups: "ProcessGroupCollection",
) -> Any:
    """The optimizer; fp32 main copies of bf16 parameters and its state are cut over the replicas.

    Args:
        settings: Its hyperparameters.
        config: The model's configuration.
        wrapped: The chunks, in DistributedDataParallel.
        groups: Process groups.

    Raises:
        UserError: Its states are to lie on the host, and are too large for it.
    """
    adam.give_to_megatron()
    gradient_norm.give_to_megatron()
    from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
    from megatron.core.optimizer import get_megatron_optimizer

    megatrons = MegatronOptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        min_lr=0.0,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        adam_eps=settings.eps,
        clip_grad=settings.clip_grad,
        bf16=config.bf16,
        params_dtype=config.params_dtype,
        use_distributed_optimizer=True,
        overlap_param_gather=wrapped[0].ddp_config.overlap_param_gather,
    )
    on_host = settings.offload == "states"
    with host_adam.standing_in(megatrons) if on_host else nullcontext():
        optimizer = get_megatron_optimizer(
            megatrons, list(wrapped), use_gloo_process_groups=False, pg_collection=groups
        )
    for group in optimizer.param_groups:
        # Norms are not decayed: Megatron says so in the group, but only its scheduler reads it.
        group["weight_decay"] = settings.weight_decay * group["wd_mult"]
    if on_host:
        adams = _on_host(optimizer)
        threads = host_share.claim(sum(one.nbytes for one in adams))
        for one in adams:
            one.begin(threads)
    return optimizer


@torch.no_grad()
def begin_state(optimizer: Any) -> None:
    """Give an optimizer that has made no step the moments it would begin with: zeros.

    megatron-core 0.16.1 cannot save one without.
    """
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                state = part.optimizer.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)


def state_tensors(optimizer: Any) -> list[torch.Tensor]:
    """What the optimizer keeps on the device beside the model: moments, and main copies of bf16
    parameters."""
    tensors = []
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if isinstance(part.optimizer, HostAdam):
            continue
        for state in part.optimizer.state.values():
            tensors += [value for value in state.values() if torch.is_tensor(value)]
        for group in part.shard_fp32_from_float16_groups:
            tensors += [parameter.data for parameter in group if parameter is not None]
    return tensors


def host_tensors(optimizer: Any) -> list[torch.Tensor]:
    """What the optimizer keeps on the host: its state with ``optimizer.offload=states``."""
    return [tensor for one in _on_host(optimizer) for tensor in one.host_tensors()]


def _on_host(optimizer: Any) -> list[HostAdam]:
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part.optimizer for part in parts if isinstance(part.optimizer, HostAdam)]
