"""Qwen2 and 2.5 (bias on q, k, v) and Qwen3 (norms on q and k)."""

from megarlhf.models.weights.families import common, windows
from megarlhf.models.weights.family import Family

DEFAULTS = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

QWEN2 = Family(
    architectures=("Qwen2ForCausalLM",),
    about="Llama with biases on q, k and v; 2.5 too",
    settings=common.SETTINGS,
    constants={**common.CONSTANTS, "add_qkv_bias": True},
    dims=common.DIMS,
    entries=(*common.DENSE, *common.QKV_BIAS),
    refuse=common.SUPPORTED,
    defaults=DEFAULTS,
    derived=windows.LATER_LAYERS,
)

QWEN3 = Family(
    architectures=("Qwen3ForCausalLM",),
    about="Llama with norms on queries and keys",
    settings=common.SETTINGS,
    constants={**common.CONSTANTS, "qk_layernorm": True},
    dims=common.DIMS,
    entries=(*common.DENSE, *common.QK_NORM),
    refuse={**common.SUPPORTED, "attention_bias": (False,)},
    defaults={**DEFAULTS, "head_dim": 128},
    derived=windows.LATER_LAYERS,
)
