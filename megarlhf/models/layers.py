"""The transformer layer as a Megatron spec: Megatron's linears around our norm and core attention."""

from collections.abc import Sequence
from dataclasses import dataclass

from megarlhf.models.attention import PackedAttention
from megarlhf.models.latent_attention import latent_attention_spec
from megarlhf.models.mixture import mixture_spec
from megarlhf.models.normalization import NormThenAdd, RMSNorm
from megarlhf.parallel import device

device.prepare()
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add  # noqa: E402
from megatron.core.tensor_parallel.layers import (  # noqa: E402
    ColumnParallelLinear,
    RowParallelLinear,
)
from megatron.core.transformer import TransformerConfig  # noqa: E402
from megatron.core.transformer.attention import (  # noqa: E402
    SelfAttention,
    SelfAttentionSubmodules,
)
from megatron.core.transformer.enums import AttnMaskType  # noqa: E402
from megatron.core.transformer.mlp import MLP, MLPSubmodules  # noqa: E402
from megatron.core.transformer.spec_utils import ModuleSpec  # noqa: E402
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules  # noqa: E402
from megatron.core.transformer.transformer_layer import (  # noqa: E402
    TransformerLayer,
    TransformerLayerSubmodules,
)


@dataclass(frozen=True)
class Extras:
    """What a layer may have that Megatron's configuration knows no name for.

    Attributes:
        post_norms: A norm behind attention and behind the MLP, before the residual is added.
        attention_soft_cap: See `scored_attention.Scoring`.
    """

    post_norms: bool = False
    attention_soft_cap: float | None = None


def block_spec(
    config: TransformerConfig, mixtures: Sequence[bool], extras: Extras
) -> TransformerBlockSubmodules:
    """The layers of one model chunk and the final norm (which only the last chunk builds).

    Args:
        config: Megatron's configuration.
        mixtures: For each layer of the chunk, whether it is a mixture of experts.
        extras: Of every layer.
    """
    return TransformerBlockSubmodules(
        layer_specs=[_layer_spec(config, is_mixture, extras) for is_mixture in mixtures],
        layer_norm=RMSNorm,
    )


def _layer_spec(config: TransformerConfig, is_mixture: bool, extras: Extras) -> ModuleSpec:
    is_latent = config.multi_latent_attention
    add = _norm_then_add(config) if extras.post_norms else get_bias_dropout_add
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=(
                latent_attention_spec() if is_latent else _attention_spec(config, extras)
            ),
            self_attn_bda=add,
            pre_mlp_layernorm=RMSNorm,
            mlp=mixture_spec(config.moe_grouped_gemm) if is_mixture else _dense_spec(),
            mlp_bda=add,
        ),
    )


def _norm_then_add(config: TransformerConfig) -> ModuleSpec:
    sizes = {"hidden_size": config.hidden_size, "eps": config.layernorm_epsilon}
    return ModuleSpec(module=NormThenAdd, params={"config": config, **sizes})


def _attention_spec(config: TransformerConfig, extras: Extras) -> ModuleSpec:
    head_norm = RMSNorm if config.qk_layernorm else None
    return ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear,
            core_attention=ModuleSpec(
                module=PackedAttention, params={"soft_cap": extras.attention_soft_cap}
            ),
            linear_proj=RowParallelLinear,
            q_layernorm=head_norm,
            k_layernorm=head_norm,
        ),
    )


def _dense_spec() -> ModuleSpec:
    return ModuleSpec(
        module=MLP,
        submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear),
    )
