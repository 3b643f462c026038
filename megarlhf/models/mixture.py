"""Mixture-of-experts layers: Megatron's, with what 0.16.1 gets wrong put right in one place."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from megarlhf.models.group_limited import GroupLimited
from megarlhf.models.grouped_experts import GroupedExperts
from megarlhf.parallel import device

device.prepare()
import torch.distributed as dist  # noqa: E402
from megatron.core.tensor_parallel import mappings  # noqa: E402
from megatron.core.tensor_parallel.layers import (  # noqa: E402
    ColumnParallelLinear,
    RowParallelLinear,
)
from megatron.core.transformer import TransformerConfig  # noqa: E402
from megatron.core.transformer.mlp import MLPSubmodules  # noqa: E402
from megatron.core.transformer.moe import moe_utils, token_dispatcher  # noqa: E402
from megatron.core.transformer.moe.experts import SequentialMLP  # noqa: E402
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules  # noqa: E402
from megatron.core.transformer.moe.router import TopKRouter  # noqa: E402
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP  # noqa: E402
from megatron.core.transformer.spec_utils import ModuleSpec  # noqa: E402


def mixture_spec(grouped: bool) -> ModuleSpec:
    """A router and experts, each expert an MLP of its own; shared experts where configured.

    Args:
        grouped: Whether a rank's experts are computed together.
    """
    _prepare()
    experts = GroupedExperts if grouped else SequentialMLP
    linears = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    return ModuleSpec(
        module=MoELayer,
        submodules=MoESubmodules(
            experts=ModuleSpec(module=experts, submodules=linears),
            shared_experts=ModuleSpec(module=SharedExpertMLP, submodules=linears),
            router=Router,
        ),
        metainfo={"fuse_pre_mlp_layernorm": False},
    )


class Router(TopKRouter):
    """Top-k router whose auxiliary losses weigh the same in every layout.

    An expert bias (DeepSeek-V3, arXiv:2412.19437) is a parameter that is not trained, so that it is
    loaded, exported and streamed as others are. It stays as it is, in float32: changing it changes
    the policy.

    The load-balancing loss is a mean over the real tokens of the tensor-by-context group. To be divided
    with the loss, which is a sum, it is multiplied by those tokens. What megatron-core 0.16.1 multiplies
    by depends on whether a padding mask is given: the group's tokens, or one rank's, with which the
    gradient shrinks by the group's size. Here it is always the group's.
    """

    def __init__(self, config: TransformerConfig, pg_collection: Any = None) -> None:
        super().__init__(config=config, pg_collection=pg_collection)
        if self.enable_expert_bias:
            bias = self.expert_bias
            del self.expert_bias  # a buffer
            self.expert_bias = nn.Parameter(bias, requires_grad=False)
        if config.moe_router_group_topk:
            best = 1 if config.moe_router_score_function == "softmax" else 2
            self.router_replay = GroupLimited(best)

    def _apply_expert_bias(self, *_: Any, **__: Any) -> None:
        """Count nothing, since the bias stays; megatron-core 0.16.1 also counts padding wrongly."""

    def routing(
        self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See Megatron's. logits [tokens, 1, experts]; padding_mask bool [tokens, 1]."""
        if self.training and torch.is_grad_enabled() and self.is_aux_loss_enabled():
            real = logits.shape[0] * logits.shape[1] if padding_mask is None else ~padding_mask
            self._group_tokens = torch.as_tensor(real, device=logits.device).sum()
            dist.all_reduce(self._group_tokens, group=self.tp_cp_group)
        return super().routing(logits, padding_mask)

    def attach_and_log_load_balancing_loss(
        self,
        activation: torch.Tensor,
        aux_loss_coeff: float,
        aux_loss: torch.Tensor,
        *_: Any,
        **__: Any,
    ) -> torch.Tensor:
        """Attach the loss times the group's tokens.

        Not logged: Megatron's log is one a process, as long as the first model that wrote to it.
        """
        return moe_utils.MoEAuxLossAutoScaler.apply(activation, aux_loss * self._group_tokens)

    def apply_z_loss(
        self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attach coef * sum over real tokens of logsumexp(logits)^2 (ST-MoE, arXiv:2202.08906, eq. 5).

        Megatron's divides by the tensor-by-context group's size, as the auxiliary loss's gradient was.

        Args:
            logits: [tokens, experts].
            padding_mask: bool [tokens], True for padding.
        """
        coefficient = self.config.moe_z_loss_coeff
        if coefficient is None or not self.training or not torch.is_grad_enabled():
            return logits
        squares = logits.logsumexp(dim=-1).square()
        if padding_mask is not None:
            squares = squares * ~padding_mask
        return moe_utils.MoEAuxLossAutoScaler.apply(logits, coefficient * squares.sum())


def forget_last_pass(model: nn.Module) -> None:
    """Drop the routing weights that megatron-core 0.16.1's dispatchers keep, and with them their graph.

    The graph leads to the parameters' hooks and so back to the model: a cycle through C++ that Python
    never collects. The model would outlive its last user, with its process groups and their threads.
    """
    for module in model.modules():
        dispatcher = getattr(module, "token_dispatcher", None)
        if dispatcher is not None:
            dispatcher.probs = None


def _prepare() -> None:
    """Where megatron-core 0.16.1 takes Transformer Engine, CUDA or NCCL for granted."""
    # Without Transformer Engine the name is not there, and looked up all the same; with it the router's
    # float32 product would be rounded to TF32. torch's is the same on every device.
    moe_utils.te_general_gemm = None
    if device.prepare().type != "cpu":
        return
    token_dispatcher.maybe_move_tensor_to_cpu = _on_host
    # gloo neither gathers nor reduce-scatters parts of different lengths; it exchanges them.
    mappings._gather_along_first_dim = _uneven_gather(_gather)
    mappings._reduce_scatter_along_first_dim = _uneven_reduce_scatter(_reduce_scatter)


_gather = mappings._gather_along_first_dim
_reduce_scatter = mappings._reduce_scatter_along_first_dim


def _on_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def _uneven_gather(even: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def gather(
        part: torch.Tensor,
        group: dist.ProcessGroup,
        output_split_sizes: Sequence[int] | None = None,
        use_global_buffer: bool = False,
    ) -> torch.Tensor:
        if output_split_sizes is None or group.size() == 1:
            return even(part, group, output_split_sizes, use_global_buffer)
        sizes = [int(size) for size in output_split_sizes]
        whole = part.new_empty((sum(sizes), *part.shape[1:]))
        copies = torch.cat([part] * group.size())
        dist.all_to_all_single(whole, copies, sizes, [len(part)] * group.size(), group=group)
        return whole

    return gather


def _uneven_reduce_scatter(even: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def reduce_scatter(
        whole: torch.Tensor,
        group: dist.ProcessGroup,
        input_split_sizes: Sequence[int] | None = None,
        use_global_buffer: bool = False,
    ) -> torch.Tensor:
        if input_split_sizes is None or group.size() == 1:
            return even(whole, group, input_split_sizes, use_global_buffer)
        sizes = [int(size) for size in input_split_sizes]
        mine = sizes[group.rank()]
        parts = whole.new_empty((mine * group.size(), *whole.shape[1:]))
        dist.all_to_all_single(parts, whole.contiguous(), [mine] * group.size(), sizes, group=group)
        return parts.unflatten(0, (group.size(), mine)).sum(0)

    return reduce_scatter
