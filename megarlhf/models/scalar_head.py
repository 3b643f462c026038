"""The head of reward models and critics: one number a token."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from megarlhf.parallel import device

device.prepare()
from megatron.core.tensor_parallel.mappings import (  # noqa: E402
    gather_from_sequence_parallel_region,
)

if TYPE_CHECKING:
    from megatron.core.transformer import TransformerConfig
    from torch.distributed import ProcessGroup


class ScalarHead(nn.Module):
    """hidden [T, 1, H] -> values [T, 1, 1], a linear map without bias, the same on every tensor rank.

    Stands where Megatron's output layer would. Under sequence parallelism each rank maps its own
    tokens and the values are gathered: the weight's gradient is partial and marked to be summed.
    """

    def __init__(self, config: "TransformerConfig", group: "ProcessGroup") -> None:
        super().__init__()
        self.group, self.sequence_parallel = group, config.sequence_parallel
        where = torch.cuda.current_device()
        self.weight = nn.Parameter(
            torch.zeros(1, config.hidden_size, dtype=config.params_dtype, device=where)
        )
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(
        self, hidden: torch.Tensor, weight: torch.Tensor | None = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        """The values and, as Megatron's linear layers give it, no bias."""
        values = nn.functional.linear(hidden, self.weight)
        if self.sequence_parallel:
            # Every rank computes the same loss from the values: its gradient is cut, not summed.
            values = gather_from_sequence_parallel_region(
                values, tensor_parallel_output_grad=False, group=self.group
            )
        return values, None
