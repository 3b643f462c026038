import json

import pytest

from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from tests.models.tiny import CONFIG

LLAMA = {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", **CONFIG}


def read(directory, text):
    (directory / "config.json").write_text(text if isinstance(text, str) else json.dumps(text))
    return ModelSpec.read(directory)


def test_settings_and_shapes_come_from_the_configuration(tmp_path):
    spec = read(tmp_path, LLAMA)
    assert (spec.num_layers, spec.vocab_size, spec.tied) == (4, 101, False)
    assert spec.settings["kv_channels"] == 8
    assert spec.settings["num_query_groups"] == 2
    assert spec.tensors["model.embed_tokens.weight"] == (101, 32)
    assert spec.tensors["model.layers.3.self_attn.k_proj.weight"] == (16, 32)
    assert spec.tensors["model.layers.3.mlp.down_proj.weight"] == (32, 48)
    assert len(spec.tensors) == 4 * 9 + 3


def test_absent_keys_mean_what_they_mean_to_hugging_face(tmp_path):
    from transformers import LlamaConfig

    optional = ("num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings")
    config = {k: v for k, v in LLAMA.items() if k not in (*optional, "max_position_embeddings")}
    settings = read(tmp_path, config).settings
    theirs = LlamaConfig(**{k: v for k, v in config.items() if k != "architectures"})
    assert settings["num_query_groups"] == theirs.num_key_value_heads
    assert settings["kv_channels"] == theirs.head_dim
    assert settings["layernorm_epsilon"] == theirs.rms_norm_eps
    assert settings["tied_embeddings"] == theirs.tie_word_embeddings
    assert settings["max_sequence_length"] == theirs.max_position_embeddings


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", ["does not parse"]),
        (
            {**LLAMA, "architectures": ["GPT2LMHeadModel"]},
            [
                "GPT2LMHeadModel",
                "Qwen2ForCausalLM (Llama with biases on q, k and v",
                "adding-a-model",
            ],
        ),
        ({**LLAMA, "architectures": None}, ["no architecture is named", "LlamaForCausalLM"]),
        (
            {**LLAMA, "architectures": [], "model_type": "qwen3_moe"},
            ["only the model_type 'qwen3_moe'", '"architectures": ["Qwen3MoeForCausalLM"]'],
        ),
        ({**LLAMA, "quantization_config": {"bits": 4}}, ["the weights are quantized"]),
        ({**LLAMA, "attention_bias": True}, ["attention_bias=True", "supported: False"]),
        ({**LLAMA, "mlp_bias": True}, ["mlp_bias=True"]),
        ({**LLAMA, "hidden_act": "gelu"}, ["hidden_act='gelu'", "supported: 'silu'"]),
        ({**LLAMA, "hidden_size": None}, ["hidden_size is missing"]),
        ({**LLAMA, "hidden_size": "32"}, ["hidden_size must be a positive whole number, got '32'"]),
        ({**LLAMA, "vocab_size": 0}, ["vocab_size must be a positive whole number, got 0"]),
        ({**LLAMA, "rms_norm_eps": "1e-5"}, ["rms_norm_eps must be a number, got '1e-5'"]),
        ({**LLAMA, "tie_word_embeddings": "no"}, ["must be true or false, got 'no'"]),
        ({**LLAMA, "num_key_value_heads": 3}, ["(4) must be a multiple of", "(3)"]),
        ({**LLAMA, "architectures": "LlamaForCausalLM"}, ["no architecture is named"]),
        ({**LLAMA, "rope_scaling": 8}, ["a value of the wrong kind"]),
    ],
)
def test_what_is_not_supported_is_refused_by_file_and_key(tmp_path, config, says):
    with pytest.raises(UserError) as error:
        read(tmp_path, config)
    for text in [str(tmp_path / "config.json"), *says]:
        assert text in str(error.value)


def test_a_reward_model_has_one_label(tmp_path):
    config = {**LLAMA, "architectures": ["LlamaForSequenceClassification"]}
    for says_so in ({"id2label": {"0": "LABEL_0"}}, {"num_labels": 1}):
        assert read(tmp_path, {**config, **says_so}).scalar_head == "score"
    for other, count in (({}, 2), ({"id2label": None}, 2), ({"num_labels": 5}, 5)):
        with pytest.raises(UserError, match=f"a classifier of {count} labels"):
            read(tmp_path, {**config, **other})


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.json is missing") as error:
        ModelSpec.read(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere" / "config.json") in str(error.value)
