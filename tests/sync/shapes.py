"""Small models of every kind of layout, known by their configuration alone."""

import json
from pathlib import Path

from megarlhf.models.spec import ModelSpec
from tests.models.tiny import CONFIG

EXPERTS = {"moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 2}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 20,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "moe_intermediate_size": 24,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "rms_norm_eps": 1e-6,
}
KINDS = {
    "llama": ("LlamaForCausalLM", {}),
    "tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM", {}),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2-moe": ("Qwen2MoeForCausalLM", {**EXPERTS, "shared_expert_intermediate_size": 16}),
    "qwen3-moe": ("Qwen3MoeForCausalLM", {**EXPERTS, "decoder_sparse_step": 2}),
    "deepseek-v3": ("DeepseekV3ForCausalLM", LATENT),
}


def spec_of(kind: str, directory: Path, **settings: object) -> ModelSpec:
    """The model of that kind; its ``config.json`` is written into the directory."""
    architecture, special = KINDS[kind]
    config = {"architectures": [architecture], **CONFIG, **special, **settings}
    (directory / "config.json").write_text(json.dumps(config))
    return ModelSpec.read(directory)
