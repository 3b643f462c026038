"""Gemma 2 (arXiv:2408.00118): norms around each sublayer, soft caps, every other layer with a window."""

from megarlhf.models.weights.families import common, windows
from megarlhf.models.weights.families.common import HF, MEGATRON
from megarlhf.models.weights.family import Entry, Family, Setting, Tensor
from megarlhf.models.weights.operations import Replicated


def _norm(parameter: str, name: str) -> Entry:
    return Entry(
        f"{MEGATRON}{parameter}.weight",
        lambda dims: Replicated(),
        (Tensor(f"{HF}{name}.weight", "hidden"),),
    )


GEMMA2 = Family(
    architectures=("Gemma2ForCausalLM",),
    about="norms before and after each sublayer, soft caps, GeGLU, windows in every other layer",
    settings={
        **common.SETTINGS,
        "attention_soft_cap": Setting("attn_logit_softcapping", optional=True),
        "logit_soft_cap": Setting("final_logit_softcapping", optional=True),
    },
    constants={
        **common.CONSTANTS,
        "activation_func": "gelu_pytorch_tanh",
        "layernorm_zero_centered_gamma": True,
        "post_norms": True,
    },
    dims=common.DIMS,
    entries=(
        *common.EMBEDDING,
        *common.ATTENTION,
        _norm("self_attn_bda", "post_attention_layernorm"),
        _norm("pre_mlp_layernorm", "pre_feedforward_layernorm"),
        *common.MLP,
        _norm("mlp_bda", "post_feedforward_layernorm"),
        *common.HEAD,
    ),
    refuse={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attention_bias": (False,),
        "use_bidirectional_attention": (None, False),
    },
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "pad_token_id": 0,
    },
    derived={
        **windows.EVERY_OTHER_LAYER,
        "score_scale": lambda config: config["query_pre_attn_scalar"] ** -0.5,
        "embedding_scale": lambda config: config["hidden_size"] ** 0.5,
    },
)
