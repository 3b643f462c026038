"""Mixtures of experts: Mixtral, Qwen2-MoE and Qwen3-MoE."""

from megarlhf.models.weights.families import common, experts, windows
from megarlhf.models.weights.family import Family, Setting

MIXTRAL = Family(
    architectures=("MixtralForCausalLM",),
    about="every layer a mixture of a few large experts",
    settings={
        **common.SETTINGS,
        "num_moe_experts": Setting("num_local_experts"),
        "moe_router_topk": Setting("num_experts_per_tok"),
        "moe_ffn_hidden_size": Setting("intermediate_size"),
    },
    constants=common.CONSTANTS,
    dims=experts.DIMS,
    entries=(
        *common.EMBEDDING,
        *common.ATTENTION,
        *common.MLP_NORM,
        *experts.experts("block_sparse_moe", "w1", "w3", "w2"),
        *common.HEAD,
    ),
    refuse={**common.SUPPORTED, "layer_types": (None,)},
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    derived=windows.EVERY_LAYER,
)

QWEN_SETTINGS = {
    **common.SETTINGS,
    "num_moe_experts": Setting("num_experts", default="num_local_experts"),
    "moe_router_topk": Setting("num_experts_per_tok"),
    "moe_ffn_hidden_size": Setting("moe_intermediate_size"),
}
QWEN_LAYERS = (
    *common.MLP_NORM,
    *experts.DENSE_LAYERS,
    *experts.experts("mlp", "gate_proj", "up_proj", "down_proj"),
)
QWEN_DERIVED = {
    "moe_layer_freq": experts.sparse_layers,
    "moe_router_pre_softmax": experts.softmax_over_all,
}

QWEN2_MOE = Family(
    architectures=("Qwen2MoeForCausalLM",),
    about="Qwen2 with many small experts and one that every token passes, behind a gate",
    settings={
        **QWEN_SETTINGS,
        "moe_shared_expert_intermediate_size": Setting("shared_expert_intermediate_size"),
    },
    constants={**common.CONSTANTS, "add_qkv_bias": True, "moe_shared_expert_gate": True},
    dims=experts.SHARED_DIMS,
    entries=(
        *common.EMBEDDING,
        *common.ATTENTION,
        *common.QKV_BIAS,
        *QWEN_LAYERS,
        *experts.shared_experts("shared_expert"),
        *experts.SHARED_GATE,
        *common.HEAD,
    ),
    refuse={**common.SUPPORTED, "use_sliding_window": (False,), "qkv_bias": (True,)},
    defaults={
        "num_key_value_heads": 16,
        "max_position_embeddings": 32768,
        "num_experts_per_tok": 4,
    },
    derived=QWEN_DERIVED,
)

QWEN3_MOE = Family(
    architectures=("Qwen3MoeForCausalLM",),
    about="Qwen3 with many small experts",
    settings=QWEN_SETTINGS,
    constants={**common.CONSTANTS, "qk_layernorm": True},
    dims=experts.DIMS,
    entries=(
        *common.EMBEDDING,
        *common.ATTENTION,
        *common.QK_NORM,
        *QWEN_LAYERS,
        *common.HEAD,
    ),
    refuse={**common.SUPPORTED, "layer_types": (None,), "attention_bias": (False,)},
    defaults={
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "num_experts_per_tok": 8,
        "use_sliding_window": False,
        "sliding_window": 4096,
    },
    derived={**windows.EVERY_LAYER, **QWEN_DERIVED},
)
