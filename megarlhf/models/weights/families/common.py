"""What most families share, as data: settings, dimensions and entries for a family file to combine."""

from megarlhf.models.weights.family import Entry, Setting, Tensor
from megarlhf.models.weights.operations import Cut, QueryKeyValue, Replicated, Stacked, Vocabulary

MEGATRON = "decoder.layers.{layer}."
HF = "model.layers.{layer}."

SETTINGS = {
    "hidden_size": Setting("hidden_size"),
    "ffn_hidden_size": Setting("intermediate_size"),
    "num_layers": Setting("num_hidden_layers"),
    "num_attention_heads": Setting("num_attention_heads"),
    "num_query_groups": Setting("num_key_value_heads", default="num_attention_heads"),
    "kv_channels": Setting("head_dim", optional=True),
    "layernorm_epsilon": Setting("rms_norm_eps", default=1e-6),
    "vocab_size": Setting("vocab_size"),
    "max_sequence_length": Setting("max_position_embeddings", default=2048),
    "tied_embeddings": Setting("tie_word_embeddings", default=False),
}

CONSTANTS = {
    "normalization": "RMSNorm",
    "gated_linear_unit": True,
    "activation_func": "silu",
    "add_bias_linear": False,
    "add_qkv_bias": False,
}

SUPPORTED = {"hidden_act": ("silu",)}

DIMS = {
    "hidden": ("hidden_size",),
    "ffn": ("ffn_hidden_size",),
    "query": ("num_attention_heads", "kv_channels"),
    "kv": ("num_query_groups", "kv_channels"),
    "head": ("kv_channels",),
    "groups": ("num_query_groups",),
    "vocab": ("vocab_size",),
    "one": (),
}

EMBEDDING = (
    Entry(
        "embedding.word_embeddings.weight",
        lambda dims: Vocabulary(),
        (Tensor("model.embed_tokens.weight", "vocab hidden"),),
    ),
)

ATTENTION = (
    Entry(
        MEGATRON + "input_layernorm.weight",
        lambda dims: Replicated(),
        (Tensor(HF + "input_layernorm.weight", "hidden"),),
    ),
    Entry(
        MEGATRON + "self_attention.linear_qkv.weight",
        lambda dims: QueryKeyValue(dims["groups"]),
        (
            Tensor(HF + "self_attn.q_proj.weight", "query hidden"),
            Tensor(HF + "self_attn.k_proj.weight", "kv hidden"),
            Tensor(HF + "self_attn.v_proj.weight", "kv hidden"),
        ),
    ),
    Entry(
        MEGATRON + "self_attention.linear_proj.weight",
        lambda dims: Cut(1),
        (Tensor(HF + "self_attn.o_proj.weight", "hidden query"),),
    ),
)

QKV_BIAS = (
    Entry(
        MEGATRON + "self_attention.linear_qkv.bias",
        lambda dims: QueryKeyValue(dims["groups"]),
        (
            Tensor(HF + "self_attn.q_proj.bias", "query"),
            Tensor(HF + "self_attn.k_proj.bias", "kv"),
            Tensor(HF + "self_attn.v_proj.bias", "kv"),
        ),
    ),
)

QK_NORM = (
    Entry(
        MEGATRON + "self_attention.q_layernorm.weight",
        lambda dims: Replicated(),
        (Tensor(HF + "self_attn.q_norm.weight", "head"),),
    ),
    Entry(
        MEGATRON + "self_attention.k_layernorm.weight",
        lambda dims: Replicated(),
        (Tensor(HF + "self_attn.k_norm.weight", "head"),),
    ),
)

MLP_NORM = (
    Entry(
        MEGATRON + "pre_mlp_layernorm.weight",
        lambda dims: Replicated(),
        (Tensor(HF + "post_attention_layernorm.weight", "hidden"),),
    ),
)

MLP = (
    Entry(
        MEGATRON + "mlp.linear_fc1.weight",
        lambda dims: Stacked(),
        (
            Tensor(HF + "mlp.gate_proj.weight", "ffn hidden"),
            Tensor(HF + "mlp.up_proj.weight", "ffn hidden"),
        ),
    ),
    Entry(
        MEGATRON + "mlp.linear_fc2.weight",
        lambda dims: Cut(1),
        (Tensor(HF + "mlp.down_proj.weight", "hidden ffn"),),
    ),
)

HEAD = (
    Entry(
        "decoder.final_layernorm.weight",
        lambda dims: Replicated(),
        (Tensor("model.norm.weight", "hidden"),),
    ),
    Entry(
        "output_layer.weight",
        lambda dims: Vocabulary(),
        (Tensor("lm_head.weight", "vocab hidden"),),
        only_if=("tied_embeddings", False),
    ),
)


def scalar_head(name: str) -> Entry:
    """A head of this name that gives one number a token, in place of the output layer."""
    return Entry(
        "output_layer.weight", lambda dims: Replicated(), (Tensor(f"{name}.weight", "one hidden"),)
    )


DENSE = (*EMBEDDING, *ATTENTION, *MLP_NORM, *MLP, *HEAD)
