"""Multi-head latent attention: Megatron's, around our norm, rotary embedding and core attention."""

from typing import Any

import torch
from torch import nn

from megarlhf.models.attention import PackedAttention
from megarlhf.models.normalization import RMSNorm
from megarlhf.parallel import device

device.prepare()
from megatron.core.tensor_parallel.layers import (  # noqa: E402
    ColumnParallelLinear,
    RowParallelLinear,
)
from megatron.core.transformer import multi_latent_attention  # noqa: E402
from megatron.core.transformer.enums import AttnMaskType  # noqa: E402
from megatron.core.transformer.spec_utils import ModuleSpec  # noqa: E402


class DownProjection(nn.Module):
    """hidden [T, 1, H] -> latent [T, 1, r], without bias, the same on every tensor rank.

    Under sequence parallelism every rank maps its own tokens: the weight's gradient is partial, and
    marked to be summed. Cut by columns instead, as Megatron's own linear would be, the gradient of
    the keys' rotary part is not summed over the ranks' heads in megatron-core 0.16.1.
    """

    def __init__(self, input_size: int, output_size: int, *, config: Any, **_: Any) -> None:
        super().__init__()
        where = torch.cuda.current_device()
        self.weight = nn.Parameter(
            torch.empty(output_size, input_size, dtype=config.params_dtype, device=where)
        )
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The latents and, as Megatron's linear layers give it, no bias."""
        return nn.functional.linear(hidden, self.weight), None


def latent_attention_spec() -> ModuleSpec:
    """Queries, keys and values through latents; see DeepSeek-V2, arXiv:2405.04434."""
    _prepare()
    return ModuleSpec(
        module=multi_latent_attention.MLASelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=multi_latent_attention.MLASelfAttentionSubmodules(
            linear_q_proj=ColumnParallelLinear,
            linear_q_down_proj=DownProjection,
            linear_q_up_proj=ColumnParallelLinear,
            linear_kv_down_proj=DownProjection,
            linear_kv_up_proj=ColumnParallelLinear,
            core_attention=PackedAttention,
            linear_proj=RowParallelLinear,
            q_layernorm=RMSNorm,
            kv_layernorm=RMSNorm,
        ),
    )


def _prepare() -> None:
    """What megatron-core 0.16.1's module takes for granted."""
    # It takes down projections of four classes only; this is its name for one that is not cut.
    multi_latent_attention.Linear = DownProjection
    if not isinstance(multi_latent_attention.TELinear, type):
        # Without Transformer Engine the name is bound to a stand-in, which it takes for the class.
        multi_latent_attention.HAVE_TE = False
