"""All experts of a rank in two grouped matrix products, on any device that torch has them for."""

import torch
from torch import nn

from megarlhf.models.lora.adapter import SUFFIX
from megarlhf.models.lora.grouped import ALIGNMENT, grouped_adapters, grouped_product
from megarlhf.parallel import device

device.prepare()
from megatron.core.transformer.moe.experts import SequentialMLP  # noqa: E402


class GroupedExperts(SequentialMLP):
    """Megatron's experts, same parameters and same function, computed together.

    Many small experts leave a GPU idle when they run one by one. The weights are stacked in each pass:
    for t tokens an expert, a copy of each element beside 2 t operations with it.

    T tokens in the order of their experts, H hidden, F an expert's width on this rank.
    """

    def forward(
        self,
        permuted_local_hidden_states: torch.Tensor,
        tokens_per_expert: torch.Tensor,
        permuted_probs: torch.Tensor,
    ) -> tuple[torch.Tensor, None]:
        """Outputs times routing weights.

        Args:
            permuted_local_hidden_states: [T, H].
            tokens_per_expert: Integers, one an expert of this rank; they sum to T.
            permuted_probs: [T], the routing weights.
        """
        tokens = permuted_local_hidden_states
        ends = tokens_per_expert.to(tokens.device).cumsum(0).to(torch.int32)
        gate, up = self._product("linear_fc1", tokens, ends).chunk(2, dim=-1)
        inner = self.config.activation_func(gate) * up * permuted_probs.unsqueeze(-1)
        return self._product("linear_fc2", inner.to(tokens.dtype), ends), None

    def _product(self, name: str, tokens: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """[T, in] times each expert's own [out, in] -> [T, out]."""
        linears = [_settled(getattr(expert, name)) for expert in self.local_experts]
        stacked = torch.stack([linear.weight for linear in linears])
        output = grouped_product(tokens, stacked, ends)
        if not hasattr(self.local_experts[0], name + SUFFIX):
            return output
        adapters = [_settled(getattr(expert, name + SUFFIX)) for expert in self.local_experts]
        added = grouped_adapters(adapters, tokens, ends)
        return output if added is None else output + added


def _settled(module: nn.Module) -> nn.Module:
    """A module, once what waits for its forward pass (an overlapped gathering) has had its turn."""
    for hook in module._forward_pre_hooks.values():
        hook(module, ())
    return module


def can_group(dtype: torch.dtype, *widths: int) -> bool:
    """Whether torch has grouped products for a dtype and for matrices with these row lengths."""
    supported = {torch.bfloat16} if torch.cuda.is_available() else {torch.bfloat16, torch.float32}
    return dtype in supported and all(width * dtype.itemsize % ALIGNMENT == 0 for width in widths)
