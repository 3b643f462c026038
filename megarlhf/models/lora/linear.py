"""The adapters of one Megatron linear, under every way in which it is cut.

T tokens, `in` and `out` of the linear on this rank, r the rank of its n adapters.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from megarlhf.models.lora.adapter import Adapter, Kind
from megarlhf.models.weights.operations import Shape
from megarlhf.parallel import device

device.prepare()
from megatron.core.tensor_parallel import mappings  # noqa: E402
from megatron.core.tensor_parallel.layers import (  # noqa: E402
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory  # noqa: E402
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint  # noqa: E402


class Switch:
    """What the adapters of one model add: their product, or what it was before the first step.

    Attributes:
        is_reference: Whether it is the latter: nothing, or that of the adapters that were loaded.
    """

    is_reference = False


class LinearAdapter(nn.Module):
    """Adds scaling * (x A^T) B^T to a linear's output.

    Only tensors with r columns travel between ranks, beside what the linear itself sends.

    Args:
        linear: Megatron's linear, with its weight.
        kind: How the linear's weight is cut.
        shapes: The shapes of this rank's A and B.
        row_source: For every row of B, which of the n adapters it belongs to; -1 for none.
        stacked: Whether the rows are those of gate, then those of up.
        adapter: Rank, scaling, dropout.
        switch: Turns the model's adapters off and on.
        config: Megatron's configuration of the model.
        group: The tensor-parallel group, over which the linear is cut.
    """

    def __init__(
        self,
        linear: nn.Module,
        kind: Kind,
        shapes: tuple[Shape, Shape],
        row_source: Sequence[int],
        *,
        stacked: bool,
        adapter: Adapter,
        switch: Switch,
        config: Any,
        group: Any,
    ) -> None:
        super().__init__()
        self._kind, self._stacked, self._adapter, self._switch = kind, stacked, adapter, switch
        self._group = group
        # Around experts the dispatcher gathers tokens and sums outputs; their linears do not.
        self._within_dispatch = getattr(linear, "explicit_expert_comm", False)
        self._cuts_tokens = config.sequence_parallel and not self._within_dispatch
        where, dtype = linear.weight.device, linear.weight.dtype
        self.A, self.B = (
            nn.Parameter(torch.zeros(shape, dtype=dtype, device=where)) for shape in shapes
        )
        self._before: tuple[torch.Tensor, torch.Tensor] | None = None
        self._mark(linear, config)
        count = shapes[0][0] // adapter.rank
        sources = torch.tensor(row_source, device=where)
        mask = sources[:, None] == torch.arange(count, device=where)  # [rows of B, n]
        needs_mask = count > 1 or any(row_source)
        self.register_buffer("_mask", mask.to(dtype) if needs_mask else None, persistent=False)

    def _mark(self, linear: nn.Module, config: Any) -> None:
        """What Megatron reads: who is cut, who is an expert's, whose gradient is partial."""
        for parameter in (self.A, self.B):
            parameter.allreduce = getattr(linear.weight, "allreduce", True)
        if self._kind != "copy":
            cut, dim = (self.B, 0) if self._kind == "column" else (self.A, 1)
            set_tensor_model_parallel_attributes(cut, True, dim, 1)
        # Of tokens that are cut, or (with experts) of a product that is: each rank has a part.
        for parameter in {"column": (self.A,), "row": (self.B,), "copy": (self.A, self.B)}[
            self._kind
        ]:
            parameter.sequence_parallel = config.sequence_parallel

    def remember(self) -> None:
        """Keep the present values as those of the reference."""
        self._before = (self.A.detach().clone(), self.B.detach().clone())

    def matrices(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A [n r, in] and B [out, n r], in which each row has its own adapter's columns.

        None where the adapters add nothing.
        """
        down, up = self.A, self.B
        if self._switch.is_reference:
            if self._before is None:
                return None
            down, up = self._before
        if self._mask is not None:
            up = (up.unsqueeze(1) * self._mask.unsqueeze(2)).flatten(1)
        return down, up

    def dropped(self, x: torch.Tensor) -> torch.Tensor:
        """The adapters' input, in training without a share of its elements."""
        return F.dropout(x, self._adapter.dropout, self.training)

    @property
    def scaling(self) -> float:
        """See `Adapter.scaling`."""
        return self._adapter.scaling

    def forward(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The linear's output with what the adapters add to it.

        Args:
            x: What the linear got, [T, 1, in].
            output: What it gave, [T', 1, out].
        """
        matrices = self.matrices()
        if matrices is None:
            return output
        down, up = matrices
        inner = self._exchanged(F.linear(self.dropped(x), down))
        return output + self.scaling * F.linear(inner, up)

    def _exchanged(self, inner: torch.Tensor) -> torch.Tensor:
        """As the linear does with its input (column) or output (row), in the middle: [T, 1, n r]."""
        if self._within_dispatch or self._kind == "copy" or self._group.size() == 1:
            return inner
        if self._kind == "column":
            if self._cuts_tokens:
                return mappings.gather_from_sequence_parallel_region(inner, group=self._group)
            return mappings.copy_to_tensor_model_parallel_region(inner, group=self._group)
        if self._cuts_tokens:
            return mappings.reduce_scatter_to_sequence_parallel_region(inner, group=self._group)
        return mappings.reduce_from_tensor_model_parallel_region(inner, group=self._group)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple = (),
        metadata: dict | None = None,
    ) -> dict[str, Any]:
        """For Megatron's distributed checkpoints."""
        axes = {"column": {"B": 0}, "row": {"A": 1}, "copy": {}}[self._kind]
        found = make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            axes,
            sharded_offsets,
            tp_group=self._group,
            dp_cp_group=(metadata or {})["dp_cp_group"],
        )
        if self._stacked:
            key = f"{prefix}B"
            found[key] = apply_swiglu_sharded_factory(found[key], sharded_offsets)
        return found
