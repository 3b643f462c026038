"""Core attention over packed sequences: plugged into Megatron's layer between QKV and projection."""

from typing import Any

import torch

from megarlhf.models.rotary import PackedLayout
from megarlhf.parallel import device
from megarlhf.parallel.ring_attention import packed_attention

device.prepare()
from megatron.core.transformer.module import MegatronModule  # noqa: E402


class PackedAttention(MegatronModule):
    """Causal attention inside each packed sequence, none across; GQA; over a ring under CP.

    Shapes: T packed tokens, n heads and g key/value heads of this rank, d head size.
    """

    def __init__(
        self,
        config: Any,
        softmax_scale: float | None = None,
        pg_collection: Any = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.softmax_scale = config.kv_channels**-0.5 if softmax_scale is None else softmax_scale
        self.group = pg_collection.cp

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
        out = packed_attention(
            query[:, 0],
            key[:, 0],
            value[:, 0],
            packed_seq_params.lengths,
            scale=self.softmax_scale,
            group=self.group,
        )
        return out.flatten(1)[:, None]
