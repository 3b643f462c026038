"""Qwen2 and 2.5 (bias on q, k, v) and Qwen3 (norms on q and k)."""

from megarlhf.models.weights.families import common
from megarlhf.models.weights.family import Family

QWEN2 = Family(
    architectures=("Qwen2ForCausalLM",),
    settings=common.SETTINGS,
    constants={**common.CONSTANTS, "add_qkv_bias": True},
    dims=common.DIMS,
    entries=(*common.DENSE, *common.QKV_BIAS),
    refuse={**common.SUPPORTED, "use_sliding_window": (False,)},
)

QWEN3 = Family(
    architectures=("Qwen3ForCausalLM",),
    settings=common.SETTINGS,
    constants={**common.CONSTANTS, "qk_layernorm": True},
    dims=common.DIMS,
    entries=(*common.DENSE, *common.QK_NORM),
    refuse={**common.SUPPORTED, "use_sliding_window": (False,), "attention_bias": (False,)},
)
