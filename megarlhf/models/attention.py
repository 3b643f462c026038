"""Core attention over packed sequences: plugged into Megatron's layer between QKV and projection."""

from typing import Any

import torch
from torch import nn

from megarlhf.models.rotary import PackedLayout
from megarlhf.parallel import device
from megarlhf.parallel.packed_attention import packed_attention
from megarlhf.parallel.scored_attention import Scoring

device.prepare()
from megatron.core.transformer.module import MegatronModule  # noqa: E402
from megatron.core.transformer.utils import is_layer_window_attention  # noqa: E402


class PackedAttention(MegatronModule):
    """Causal attention inside each packed sequence, none across; GQA; over a ring under CP.

    A layer with a window (Megatron's ``window_size`` and ``window_attn_skip_freq``) or a soft cap of
    its scores computes them explicitly where that gives other results than the flash kernel.

    Shapes: T packed tokens, n heads and g key/value heads of this rank, d head size, of which values
    may have another: e. Latent attention gives tensors without the dimension of size 1.
    """

    def __init__(
        self,
        config: Any,
        layer_number: int,
        softmax_scale: float | None = None,
        soft_cap: float | None = None,
        pg_collection: Any = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        layers, window = config.window_attn_skip_freq, None
        if is_layer_window_attention(config.window_size, layers, layer_number):
            window = config.window_size[0] + 1  # Megatron's number is of tokens before this one
        self.scoring = Scoring(cap=soft_cap, window=window)
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
        """query [T, 1, n, d], key [T, 1, g, d], value [T, 1, g, e] -> [T, 1, n * e]."""
        size = max(key.shape[-1], value.shape[-1])  # the flash kernels know one head size only
        query, key, value = (heads.flatten(0, -3) for heads in (query, key, value))
        if packed_seq_params.turn is not None:
            query, key = packed_seq_params.turn.of(query), packed_seq_params.turn.of(key)
        out = packed_attention(
            *(_widened(heads, size) for heads in (query, key, value)),
            packed_seq_params.lengths,
            scale=self.softmax_scale,
            group=self.group,
            scoring=self.scoring,
            continued=packed_seq_params.continued,
        )
        return out[..., : value.shape[-1]].flatten(1)[:, None]


def _widened(heads: torch.Tensor, size: int) -> torch.Tensor:
    """[T, n, d] -> [T, n, size], zeros behind."""
    missing = size - heads.shape[-1]
    return nn.functional.pad(heads, (0, missing)) if missing else heads
