"""Logits of some tokens only: those whose predictions are trained on."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from megarlhf.parallel import device

device.prepare()
from megatron.core.tensor_parallel.mappings import (  # noqa: E402
    gather_from_sequence_parallel_region,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class SelectedTokens:
    """Has a language model's output layer compute the rows that are asked for.

    Prompts are long and logits wide: where no loss reads them they are not worth their time and memory.

    Args:
        layer: Megatron's output layer.
        group: Its tensor-parallel ranks, which ask for the same rows.

    Attributes:
        rows: int64 [S], which of the T tokens of the next pass; None: all of them.
    """

    def __init__(self, layer: nn.Module, group: "ProcessGroup") -> None:
        self.rows: torch.Tensor | None = None
        self._group, self._cuts_tokens = group, layer.sequence_parallel
        layer.register_forward_pre_hook(self._select)
        layer.register_forward_hook(self._restore, always_call=True)

    def _select(self, layer: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        """hidden [T, 1, H], or under sequence parallelism a rank's part, becomes [S, 1, H]."""
        if self.rows is None:
            return None
        (hidden,) = inputs
        if self._cuts_tokens:
            # The layer sums the ranks' gradients of what it is given whole: here they are cut.
            layer.sequence_parallel = False
            hidden = gather_from_sequence_parallel_region(
                hidden, tensor_parallel_output_grad=False, group=self._group
            )
        return (hidden.index_select(0, self.rows),)

    def _restore(self, layer: nn.Module, *_: Any) -> None:
        layer.sequence_parallel = self._cuts_tokens
