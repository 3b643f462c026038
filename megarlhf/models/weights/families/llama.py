"""Llama 2 and 3: RMSNorm, RoPE, grouped-query attention, SwiGLU, tied or untied embeddings."""

from megarlhf.models.weights.family import Entry, Family, Setting, Tensor
from megarlhf.models.weights.operations import Cut, QueryKeyValue, Replicated, Stacked, Vocabulary

MEGATRON_LAYER = "decoder.layers.{layer}."
HF_LAYER = "model.layers.{layer}."

LLAMA = Family(
    architectures=("LlamaForCausalLM",),
    settings={
        "hidden_size": Setting("hidden_size"),
        "ffn_hidden_size": Setting("intermediate_size"),
        "num_layers": Setting("num_hidden_layers"),
        "num_attention_heads": Setting("num_attention_heads"),
        "num_query_groups": Setting("num_key_value_heads", default="num_attention_heads"),
        "kv_channels": Setting("head_dim"),
        "layernorm_epsilon": Setting("rms_norm_eps", default=1e-6),
        "vocab_size": Setting("vocab_size"),
        "max_sequence_length": Setting("max_position_embeddings", default=2048),
        "tied_embeddings": Setting("tie_word_embeddings", default=False),
    },
    constants={
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": "silu",
        "add_bias_linear": False,
        "add_qkv_bias": False,
    },
    refuse={
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
    },
    dims={
        "hidden": ("hidden_size",),
        "ffn": ("ffn_hidden_size",),
        "query": ("num_attention_heads", "kv_channels"),
        "kv": ("num_query_groups", "kv_channels"),
        "groups": ("num_query_groups",),
        "vocab": ("vocab_size",),
    },
    entries=(
        Entry(
            "embedding.word_embeddings.weight",
            lambda dims: Vocabulary(),
            (Tensor("model.embed_tokens.weight", "vocab hidden"),),
        ),
        Entry(
            MEGATRON_LAYER + "input_layernorm.weight",
            lambda dims: Replicated(),
            (Tensor(HF_LAYER + "input_layernorm.weight", "hidden"),),
        ),
        Entry(
            MEGATRON_LAYER + "self_attention.linear_qkv.weight",
            lambda dims: QueryKeyValue(dims["groups"]),
            (
                Tensor(HF_LAYER + "self_attn.q_proj.weight", "query hidden"),
                Tensor(HF_LAYER + "self_attn.k_proj.weight", "kv hidden"),
                Tensor(HF_LAYER + "self_attn.v_proj.weight", "kv hidden"),
            ),
        ),
        Entry(
            MEGATRON_LAYER + "self_attention.linear_proj.weight",
            lambda dims: Cut(1),
            (Tensor(HF_LAYER + "self_attn.o_proj.weight", "hidden query"),),
        ),
        Entry(
            MEGATRON_LAYER + "pre_mlp_layernorm.weight",
            lambda dims: Replicated(),
            (Tensor(HF_LAYER + "post_attention_layernorm.weight", "hidden"),),
        ),
        Entry(
            MEGATRON_LAYER + "mlp.linear_fc1.weight",
            lambda dims: Stacked(),
            (
                Tensor(HF_LAYER + "mlp.gate_proj.weight", "ffn hidden"),
                Tensor(HF_LAYER + "mlp.up_proj.weight", "ffn hidden"),
            ),
        ),
        Entry(
            MEGATRON_LAYER + "mlp.linear_fc2.weight",
            lambda dims: Cut(1),
            (Tensor(HF_LAYER + "mlp.down_proj.weight", "hidden ffn"),),
        ),
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
    ),
)
