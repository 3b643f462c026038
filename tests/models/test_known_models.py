"""Configurations as they are published: they imply as many parameters as the models have."""

import json
import math

import pytest

from megarlhf.models.spec import ModelSpec

DEEPSEEK_YARN = {
    "type": "yarn",
    "factor": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "original_max_position_embeddings": 4096,
}
KNOWN = {
    "Llama-3.1-8B": (
        8_030_261_248,
        "Llama 32 4096 14336 32 8 128256",
        {
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "max_position_embeddings": 131072,
        },
    ),
    "Mistral-7B-v0.1": (
        7_241_732_096,
        "Mistral 32 4096 14336 32 8 32000",
        {"sliding_window": 4096, "max_position_embeddings": 32768},
    ),
    "Mixtral-8x7B": (
        46_702_792_704,
        "Mixtral 32 4096 14336 32 8 32000",
        {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    "Qwen2.5-7B": (
        7_615_616_512,
        "Qwen2 28 3584 18944 28 4 152064",
        {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 28},
    ),
    "Qwen1.5-MoE-A2.7B": (
        14_315_784_192,
        "Qwen2Moe 24 2048 5632 16 16 151936",
        {
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
        },
    ),
    "Qwen3-30B-A3B": (
        30_532_122_624,
        "Qwen3Moe 48 2048 6144 32 4 151936",
        {
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
            "mlp_only_layers": [],
        },
    ),
    "Gemma-2-9B": (
        9_241_705_984,
        "Gemma2 42 3584 14336 16 8 256000",
        {"hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid"},
    ),
    "DeepSeek-V2-Lite": (
        15_706_484_224,
        "DeepseekV2 27 2048 10944 16 16 102400",
        {
            "q_lora_rank": None,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "moe_intermediate_size": 1408,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,
            "first_k_dense_replace": 1,
            "moe_layer_freq": 1,
            "n_group": 1,
            "topk_group": 1,
            "topk_method": "greedy",
            "scoring_func": "softmax",
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.0,
            "rope_scaling": {**DEEPSEEK_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    "DeepSeek-V3": (
        671_026_419_200,
        "DeepseekV3 61 7168 18432 128 128 129280",
        {
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "moe_intermediate_size": 2048,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "first_k_dense_replace": 3,
            "moe_layer_freq": 1,
            "n_group": 8,
            "topk_group": 4,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "num_nextn_predict_layers": 1,
            "rope_scaling": {**DEEPSEEK_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
}
SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_model_has_its_number_of_parameters(tmp_path, name):
    expected, line, others = KNOWN[name]
    kind, *sizes = line.split()
    config = {
        "architectures": [f"{kind}ForCausalLM"],
        "model_type": kind.lower(),
        **dict(zip(SIZES, map(int, sizes), strict=True)),
        **others,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    shapes = ModelSpec.read(tmp_path).tensors.values()
    assert sum(map(math.prod, shapes)) == expected
