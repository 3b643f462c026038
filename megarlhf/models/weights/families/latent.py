"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434), as data for a family file to combine."""

from typing import Any

from megarlhf.models.weights import rope
from megarlhf.models.weights.families import common
from megarlhf.models.weights.families.common import HF, MEGATRON
from megarlhf.models.weights.family import Entry, Setting, Tensor
from megarlhf.models.weights.operations import Cut, Operation, Replicated

SETTINGS = {
    **common.SETTINGS,
    "num_query_groups": Setting("num_attention_heads"),
    "kv_channels": Setting("qk_rope_head_dim"),  # what rotary embedding turns
    "q_lora_rank": Setting("q_lora_rank", optional=True),
    "kv_lora_rank": Setting("kv_lora_rank"),
    "qk_head_dim": Setting("qk_nope_head_dim"),
    "qk_pos_emb_head_dim": Setting("qk_rope_head_dim"),
    "v_head_dim": Setting("v_head_dim"),
}

CONSTANTS = {"multi_latent_attention": True}

DIMS = {
    "query": ("num_attention_heads", ("qk_head_dim", "qk_pos_emb_head_dim")),
    "query_rank": ("q_lora_rank",),
    "kv_rank": ("kv_lora_rank",),
    "kv_down": (("kv_lora_rank", "qk_pos_emb_head_dim"),),
    "kv_up": ("num_attention_heads", ("qk_head_dim", "v_head_dim")),
    "value": ("num_attention_heads", "v_head_dim"),
}

SUPPORTED = {
    "attention_bias": (False,),
    "rms_norm_eps": (1e-6,),  # the norms of the latents have this one, whatever the others have
}


DERIVED = {  # from these Megatron computes the scale of the scores
    "rotary_scaling_factor": lambda config: rope.parameters(config).get("factor", 1.0),
    "mscale_all_dim": lambda config: rope.parameters(config).get("mscale_all_dim") or 0.0,
}


def _of(parameter: str, operation: Operation, name: str, shape: str, **conditions: Any) -> Entry:
    """An entry of a layer's attention with one source."""
    return Entry(
        MEGATRON + f"self_attention.{parameter}.weight",
        lambda dims: operation,
        (Tensor(HF + f"self_attn.{name}.weight", shape),),
        **conditions,
    )


_WHOLE = {"only_if": ("q_lora_rank", None)}  # DeepSeek-V2-Lite does not compress its queries
_LATENT = {"unless": ("q_lora_rank", None)}

ATTENTION = (
    common.ATTENTION[0],  # the norm before it
    _of("linear_q_proj", Cut(0), "q_proj", "query hidden", **_WHOLE),
    _of("linear_q_down_proj", Replicated(), "q_a_proj", "query_rank hidden", **_LATENT),
    _of("q_layernorm", Replicated(), "q_a_layernorm", "query_rank", **_LATENT),
    _of("linear_q_up_proj", Cut(0), "q_b_proj", "query query_rank", **_LATENT),
    _of("linear_kv_down_proj", Replicated(), "kv_a_proj_with_mqa", "kv_down hidden"),
    _of("kv_layernorm", Replicated(), "kv_a_layernorm", "kv_rank"),
    _of("linear_kv_up_proj", Cut(0), "kv_b_proj", "kv_up kv_rank"),
    _of("linear_proj", Cut(1), "o_proj", "hidden value"),
)
