"""Mixtures of experts: Mixtral and Qwen3-MoE."""

from megarlhf.models.weights.families import common
from megarlhf.models.weights.family import Family, Setting

CONSTANTS = {**common.CONSTANTS, "moe_router_dtype": "fp32"}
DIMS = {**common.DIMS, "experts": ("num_moe_experts",), "expert_ffn": ("moe_ffn_hidden_size",)}

MIXTRAL = Family(
    architectures=("MixtralForCausalLM",),
    settings={
        **common.SETTINGS,
        "num_moe_experts": Setting("num_local_experts"),
        "moe_router_topk": Setting("num_experts_per_tok"),
        "moe_ffn_hidden_size": Setting("intermediate_size"),
    },
    constants=CONSTANTS,
    dims=DIMS,
    entries=(
        *common.EMBEDDING,
        *common.ATTENTION,
        *common.MLP_NORM,
        *common.experts("block_sparse_moe", "w1", "w3", "w2"),
        *common.HEAD,
    ),
    refuse={**common.SUPPORTED, "sliding_window": (None,)},
)

QWEN3_MOE = Family(
    architectures=("Qwen3MoeForCausalLM",),
    settings={
        **common.SETTINGS,
        "num_moe_experts": Setting("num_experts", default="num_local_experts"),
        "moe_router_topk": Setting("num_experts_per_tok"),
        "moe_ffn_hidden_size": Setting("moe_intermediate_size"),
    },
    constants={**CONSTANTS, "qk_layernorm": True},
    dims=DIMS,
    entries=(
        *common.EMBEDDING,
        *common.ATTENTION,
        *common.QK_NORM,
        *common.MLP_NORM,
        *common.experts("mlp", "gate_proj", "up_proj", "down_proj"),
        *common.HEAD,
    ),
    refuse={
        **common.SUPPORTED,
        "use_sliding_window": (False,),
        "attention_bias": (False,),
        "norm_topk_prob": (True,),  # the chosen experts' weights sum to 1
        "decoder_sparse_step": (1,),  # every layer is a mixture
        "mlp_only_layers": ([],),
    },
)
