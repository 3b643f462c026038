"""Inverse frequencies equal Hugging Face's own, from the new and from the old keys."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megarlhf.models.rotary import PackedLayout, PackedRotaryEmbedding, inverse_frequencies
from tests.models.tiny import CONFIG

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"rope_theta": 500000.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 20000.0}},
        {"rope_parameters": {"rope_theta": 500000.0, **LLAMA3}},
        {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
        {"rope_theta": 500000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    ],
    ids=["absent", "theta", "default", "llama3", "llama3-old", "linear-old"],
)
def test_inverse_frequencies_are_hugging_faces(keys):
    raw = {"model_type": "llama", **CONFIG, "head_dim": 32, **keys}
    ours = inverse_frequencies(raw, 32)
    assert torch.equal(ours, LlamaRotaryEmbedding(LlamaConfig(**raw)).inv_freq)


def test_angles_follow_the_position_in_each_sequence():
    raw = {"model_type": "llama", **CONFIG}
    positions = torch.tensor([0, 1, 2, 0, 1])
    angles = PackedRotaryEmbedding(inverse_frequencies(raw, 8))(PackedLayout((3, 2), positions, 3))
    cos, _ = LlamaRotaryEmbedding(LlamaConfig(**raw))(torch.zeros(1), positions[None])
    assert torch.equal(angles.cos()[:, 0, 0], cos[0])


def test_a_scaling_of_attention_is_refused():
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
    with pytest.raises(ValueError, match="'yarn' scales attention"):
        inverse_frequencies({"model_type": "llama", **CONFIG, "rope_parameters": yarn}, 8)
