"""DeepSeek-V2 and V3: latent attention, shared experts, the first layers dense."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megarlhf.models.weights.families import common, experts, latent
from megarlhf.models.weights.families.common import HF, MEGATRON
from megarlhf.models.weights.family import Entry, Family, Setting, Tensor
from megarlhf.models.weights.operations import Replicated


def _dense_first(config: Mapping[str, Any]) -> int | list[int]:
    dense, layers = config["first_k_dense_replace"], config["num_hidden_layers"]
    return experts.layer_pattern([layer >= dense for layer in range(layers)])


def _shared_width(config: Mapping[str, Any]) -> int:
    return config["n_shared_experts"] * config["moe_intermediate_size"]


def _if_limited(key: str) -> Any:
    """A key of V2's that counts only where experts are chosen from a few groups."""
    return lambda c: c[key] if c.get("topk_method") == "group_limited_greedy" else None


V2 = Family(
    architectures=("DeepseekV2ForCausalLM",),
    about="latent attention, first layers dense, shared experts, experts from a few groups",
    settings={
        **latent.SETTINGS,
        "num_moe_experts": Setting("n_routed_experts"),
        "moe_router_topk": Setting("num_experts_per_tok"),
        "moe_ffn_hidden_size": Setting("moe_intermediate_size"),
        "moe_router_topk_scaling_factor": Setting("routed_scaling_factor", default=1.0),
    },
    constants={**common.CONSTANTS, **latent.CONSTANTS, "moe_router_pre_softmax": True},
    dims={**experts.SHARED_DIMS, **latent.DIMS},
    entries=(
        *common.EMBEDDING,
        *latent.ATTENTION,
        *common.MLP_NORM,
        *experts.DENSE_LAYERS,
        *experts.experts("mlp", "gate_proj", "up_proj", "down_proj"),
        *experts.shared_experts("shared_experts"),
        *common.HEAD,
    ),
    refuse={
        **common.SUPPORTED,
        **latent.SUPPORTED,
        "mlp_bias": (False,),
        "moe_layer_freq": (1,),
        "scoring_func": ("softmax",),
        "topk_method": ("greedy", "group_limited_greedy"),
        "norm_topk_prob": (False,),
    },
    defaults={"q_lora_rank": 1536, "n_shared_experts": 2, "first_k_dense_replace": 0},
    derived={
        **latent.DERIVED,
        "moe_layer_freq": _dense_first,
        "moe_shared_expert_intermediate_size": _shared_width,
        "moe_router_num_groups": _if_limited("n_group"),
        "moe_router_group_topk": _if_limited("topk_group"),
    },
)

V3 = replace(
    V2,
    architectures=("DeepseekV3ForCausalLM",),
    about="V2 with sigmoid scores and an expert bias; R1 too",
    settings={
        **V2.settings,
        "moe_router_num_groups": Setting("n_group"),
        "moe_router_group_topk": Setting("topk_group"),
    },
    constants={
        **common.CONSTANTS,
        **latent.CONSTANTS,
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_bias_update_rate": 0.0,  # it stays as the checkpoint has it
    },
    entries=(
        *V2.entries,
        Entry(
            MEGATRON + "mlp.router.expert_bias",
            lambda dims: Replicated(),
            (Tensor(HF + "mlp.gate.e_score_correction_bias", "experts"),),
            layers="mixture",
            trained=False,
        ),
    ),
    refuse={
        **V2.refuse,
        "scoring_func": ("sigmoid",),
        "topk_method": ("noaux_tc",),
        "norm_topk_prob": (True,),
        "rope_interleave": (True,),
    },
    derived={
        **latent.DERIVED,
        "moe_layer_freq": _dense_first,
        "moe_shared_expert_intermediate_size": _shared_width,
    },
    defaults={
        "max_position_embeddings": 4096,
        "q_lora_rank": 1536,
        "n_shared_experts": 1,
        "first_k_dense_replace": 3,
        "n_group": 8,
        "topk_group": 4,
        "num_experts_per_tok": 8,
        "routed_scaling_factor": 2.5,
    },
)
