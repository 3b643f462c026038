"""Llama 2 and 3, and Mistral: RMSNorm, RoPE, grouped-query attention, SwiGLU."""

from megarlhf.models.weights.families import common
from megarlhf.models.weights.family import Family

LLAMA = Family(
    architectures=("LlamaForCausalLM",),
    settings=common.SETTINGS,
    constants=common.CONSTANTS,
    dims=common.DIMS,
    entries=common.DENSE,
    refuse={**common.SUPPORTED, "attention_bias": (False,), "mlp_bias": (False,)},
)

MISTRAL = Family(
    architectures=("MistralForCausalLM",),
    settings=common.SETTINGS,
    constants=common.CONSTANTS,
    dims=common.DIMS,
    entries=common.DENSE,
    refuse={**common.SUPPORTED, "sliding_window": (None,)},
)
