"""Mixtures of experts: Mixtral, Qwen2-MoE and Qwen3-MoE."""

from megarlhf.models.weights.families import common, experts
from megarlhf.models.weights.family import Family, Setting

MIXTRAL = Family(
    architectures=("MixtralForCausalLM",),
    settings={
        **common.SETTINGS,
        "num_moe_experts": Setting("num_local_experts"),
        "moe_router_topk": Setting("num_experts_per_tok"),
        "moe_ffn_hidden_size": Setting("intermediate_size"),
    },
    constants=experts.CONSTANTS,
    dims=experts.DIMS,
    entries=(
        *common.EMBEDDING,
        *common.ATTENTION,
        *common.MLP_NORM,
        *experts.experts("block_sparse_moe", "w1", "w3", "w2"),
        *common.HEAD,
    ),
    refuse={**common.SUPPORTED, "sliding_window": (None,)},
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
    settings={
        **QWEN_SETTINGS,
        "moe_shared_expert_intermediate_size": Setting("shared_expert_intermediate_size"),
    },
    constants={**experts.CONSTANTS, "add_qkv_bias": True, "moe_shared_expert_gate": True},
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
    derived=QWEN_DERIVED,
)

QWEN3_MOE = Family(
    architectures=("Qwen3MoeForCausalLM",),
    settings=QWEN_SETTINGS,
    constants={**experts.CONSTANTS, "qk_layernorm": True},
    dims=experts.DIMS,
    entries=(
        *common.EMBEDDING,
        *common.ATTENTION,
        *common.QK_NORM,
        *QWEN_LAYERS,
        *common.HEAD,
    ),
    refuse={**common.SUPPORTED, "use_sliding_window": (False,), "attention_bias": (False,)},
    derived=QWEN_DERIVED,
)
