"""Core attention over packed sequences: Megatron's layer spec plugs it in between QKV and projection."""

from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F

from megarlhf.models.rotary import PackedLayout
from megarlhf.parallel import device

device.prepare()
from megatron.core.transformer.module import MegatronModule  # noqa: E402


class PackedAttention(MegatronModule):
    """Causal attention inside each packed sequence, none across; GQA.

    Shapes: T packed tokens, n heads and g key/value heads of this rank, d head size. Neighbouring
    sequences of equal length (packing sorts by length) run as one batch; no [T, T] mask exists.
    """

    def __init__(self, config: Any, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__(config=config)
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        /,
        *,
        packed_seq_params: PackedLayout,
        **_: Any,
    ) -> torch.Tensor:
        """query [T, 1, n, d], key and value [T, 1, g, d] -> [T, 1, n * d]."""
        tokens, _, heads, dim = query.shape
        outputs, begin = [], 0
        for length, run in groupby(packed_seq_params.lengths):
            count = sum(1 for _ in run)
            end = begin + count * length

            def batched(x: torch.Tensor, begin=begin, end=end, count=count, length=length):  # noqa: ANN001, ANN202
                return x[begin:end, 0].view(count, length, x.shape[2], dim).transpose(1, 2)

            out = F.scaled_dot_product_attention(
                batched(query),
                batched(key),
                batched(value),
                is_causal=True,
                scale=self.softmax_scale,
                enable_gqa=query.shape[2] != key.shape[2],
            )
            outputs.append(out.transpose(1, 2).reshape(end - begin, heads * dim))
            begin = end
        return torch.cat(outputs).view(tokens, 1, heads * dim)
