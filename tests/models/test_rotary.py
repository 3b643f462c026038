"""Inverse frequencies equal Hugging Face's own, from the new and from the old keys."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, rotate_half

from megarlhf.errors import UserError
from megarlhf.models.rotary import PackedLayout, PackedRotaryEmbedding, frequencies
from megarlhf.models.spec import ModelSpec
from tests.models import jobs
from tests.models.tiny import CONFIG, write_llama

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
THETA = {"rope_theta": 500000.0}
LINEAR = {"rope_type": "linear", "factor": 4.0}
SUPPORTED = {
    "absent": {},
    "theta": THETA,
    "default": {"rope_parameters": {"rope_type": "default", "rope_theta": 20000.0}},
    "default-old": {"rope_scaling": {"type": "default"}, **THETA},
    "theta-outside": {**THETA, "rope_parameters": {"rope_type": "default"}},
    "llama3": {"rope_parameters": {**THETA, **LLAMA3}},
    "llama3-old": {**THETA, "rope_scaling": LLAMA3},
    "linear": {"rope_parameters": {**THETA, **LINEAR}},
    "linear-old": {**THETA, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "yarn": {"rope_parameters": {**THETA, **YARN}},
    "yarn-old": {**THETA, "rope_scaling": {**YARN, "type": "yarn"}},
    "yarn-numbers": {
        "rope_parameters": {**THETA, **YARN, "beta_fast": 16.0, "attention_factor": 0.9}
    },
    "yarn-whole": {"rope_parameters": {**THETA, **YARN, "truncate": False}},
    "both": {"rope_parameters": {**THETA, **LINEAR}, "rope_scaling": {**THETA, **LLAMA3}},
}


@pytest.mark.parametrize("keys", SUPPORTED.values(), ids=SUPPORTED.keys())
def test_inverse_frequencies_are_hugging_faces(tmp_path, keys):
    raw = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **CONFIG, **keys}
    raw["head_dim"] = 32
    (tmp_path / "config.json").write_text(json.dumps(raw))
    ours, scale = frequencies(ModelSpec.read(tmp_path).full_config, 32)
    theirs = LlamaRotaryEmbedding(LlamaConfig(**raw))
    assert torch.equal(ours, theirs.inv_freq)
    assert scale == theirs.attention_scaling


@pytest.mark.parametrize("keys", ["linear", "llama3-old", "yarn", "yarn-numbers"])
def test_logits_are_hugging_faces(ranks, tmp_path, keys):
    """The sequence is as long as the model's positions. Seen: 1.9e-6, of logits up to 3."""
    write_llama(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps({**config, **SUPPORTED[keys]}))
    ids = torch.randint(0, 101, (128,), generator=torch.Generator().manual_seed(0))
    (ours,) = ranks.run(1, jobs.logits_of, tmp_path, [128], ids.tolist())
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path)(ids[None]).logits[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_angles_follow_the_position_in_each_sequence():
    raw = {"model_type": "llama", **CONFIG}
    positions = torch.tensor([0, 1, 2, 0, 1])
    rotary = PackedRotaryEmbedding(frequencies(raw, 8)[0])
    layout = PackedLayout((3, 2), positions, 3)
    assert rotary(layout) is None  # Megatron turns nothing
    cos, sin = LlamaRotaryEmbedding(LlamaConfig(**raw))(torch.zeros(1), positions[None])
    assert torch.equal(layout.turn.cosine[:, 0], cos[0])
    assert torch.equal(layout.turn.sine[:, 0, 4:], sin[0, :, 4:])


def test_turning_has_the_gradient_of_hugging_face():
    """Seen in fp64: 2e-16."""
    generator = torch.Generator().manual_seed(0)
    heads, upstream = torch.randn(2, 5, 3, 8, dtype=torch.float64, generator=generator)
    layout = PackedLayout((5,), torch.arange(5), 5)
    PackedRotaryEmbedding(frequencies({"model_type": "llama", **CONFIG}, 8)[0])(layout)
    cos, sin = layout.turn.cosine.double(), layout.turn.sine.double()
    sin = torch.cat((sin[..., 4:], sin[..., 4:]), dim=-1)
    ours, theirs = (heads.clone().requires_grad_() for _ in range(2))
    turned, expected = layout.turn.of(ours), theirs * cos + rotate_half(theirs) * sin
    turned.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-15)


LONG = {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0], "long_factor": [4.0]}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            {"rope_parameters": {**THETA, "rope_type": "dynamic", "factor": 2.0}},
            ["rope_parameters of type 'dynamic'", "length of the sequence", "default, linear"],
        ),
        ({"rope_scaling": LONG}, ["rope_scaling of type 'longrope'", "length of the sequence"]),
        ({"rope_parameters": {"rope_type": "proportional"}}, ["of type 'proportional'"]),
        ({"rope_scaling": {"type": "su"}}, ["of type 'su'"]),
        ({"rope_scaling": {"type": "linear"}}, ["'linear' needs a positive factor, got None"]),
        (
            {"rope_parameters": {**THETA, **LLAMA3, "low_freq_factor": None}},
            ["'llama3' needs a positive low_freq_factor"],
        ),
        ({"rope_theta": 0}, ["positive rope_theta, got 0"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor=0.5 is not supported"]),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            ["rope_parameters differs between layers (full_attention)"],
        ),
    ],
    ids=lambda value: None if isinstance(value, list) else str(value)[:40],
)
def test_what_is_not_supported_is_refused(tmp_path, keys, says):
    raw = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **CONFIG, **keys}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(UserError) as error:
        ModelSpec.read(tmp_path)
    for text in [str(tmp_path / "config.json"), *says]:
        assert text in str(error.value)
