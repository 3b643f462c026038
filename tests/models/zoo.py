"""A tiny model of every family that is supported, as Hugging Face directories."""

from pathlib import Path

import torch

SIZES = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "dtype": "float32",
}
HEAD = {"head_dim": 8}
EXPERTS = {"moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 3}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 12,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 4,
    "n_shared_experts": 2,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.5,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES = {
    "llama": ("Llama", HEAD),
    "llama-yarn": ("Llama", {**HEAD, "rope_parameters": YARN}),
    "mistral": ("Mistral", {**HEAD, "sliding_window": 8}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", HEAD),
    "mixtral": (
        "Mixtral",
        {**HEAD, "sliding_window": None, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen2-moe": ("Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 40}),
    "qwen3-moe": ("Qwen3Moe", {**HEAD, **EXPERTS, "norm_topk_prob": True}),
    "qwen3-moe-mixed": (  # layers 0 and 2 are dense
        "Qwen3Moe",
        {**HEAD, **EXPERTS, "num_hidden_layers": 4, "decoder_sparse_step": 2},
    ),
    "deepseek-v2": (
        "DeepseekV2",
        {
            **LATENT,
            "q_lora_rank": None,
            "topk_method": "group_limited_greedy",
            "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2},
        },
    ),
    "deepseek-v3": ("DeepseekV3", {**LATENT, "q_lora_rank": 28}),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 16,  # not hidden_size / num_attention_heads
            "query_pre_attn_scalar": 12,
            "sliding_window": 8,
            "attn_logit_softcapping": 1.5,  # so low that they bend
            "final_logit_softcapping": 2.0,
            "tie_word_embeddings": True,
        },
    ),
}
MIXTURES = {name for name, (_, settings) in FAMILIES.items() if "num_experts_per_tok" in settings}


def write_model(family: str, directory: Path, **changed) -> Path:
    """A model in which no two tensors, norms and biases included, are alike.

    With ``-rm`` behind the family's name it is a reward model, with a scalar head. Settings of its
    family can be changed.
    """
    import transformers

    is_scalar = family.endswith("-rm")
    name, settings = FAMILIES[family.removesuffix("-rm")]
    kind = "SequenceClassification" if is_scalar else "CausalLM"
    labels = {"num_labels": 1, "pad_token_id": 0} if is_scalar else {}
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **settings, **labels, **changed})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}For{kind}")(config)
        for tensor_name, parameter in model.named_parameters():
            mean = 1.0 if "norm" in tensor_name else 0.0
            torch.nn.init.normal_(parameter, mean, 0.15)
        for tensor_name, buffer in model.named_buffers():
            if "correction_bias" in tensor_name:  # as large as to change the experts' order
                torch.nn.init.normal_(buffer, 0.0, 0.15)
    model.save_pretrained(directory)
    return directory
