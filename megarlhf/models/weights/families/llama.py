"""Llama 2 and 3, and Mistral: RMSNorm, RoPE, grouped-query attention, SwiGLU."""

from megarlhf.models.weights.families import common, windows
from megarlhf.models.weights.family import Family

LLAMA = Family(
    architectures=("LlamaForCausalLM",),
    about="dense, grouped queries, SwiGLU, no biases",
    settings=common.SETTINGS,
    constants=common.CONSTANTS,
    dims=common.DIMS,
    entries=common.DENSE,
    refuse={**common.SUPPORTED, "attention_bias": (False,), "mlp_bias": (False,)},
)

MISTRAL = Family(
    architectures=("MistralForCausalLM",),
    about="Llama with a window in every layer",
    settings=common.SETTINGS,
    constants=common.CONSTANTS,
    dims=common.DIMS,
    entries=common.DENSE,
    refuse={**common.SUPPORTED, "layer_types": (None,)},
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    derived=windows.EVERY_LAYER,
)
