"""What a family takes for absent keys, and its windows, against Hugging Face's configuration classes."""

import pytest
import transformers

from megarlhf.errors import UserError
from megarlhf.models.weights import families
from tests.models.zoo import FAMILIES, SIZES

WINDOWS = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")


def raw_config(name):
    """As somebody would write it: only what is in the zoo."""
    kind, settings = FAMILIES[name]
    model_type = getattr(transformers, f"{kind}Config").model_type
    return {
        "architectures": [f"{kind}ForCausalLM"],
        "model_type": model_type,
        **SIZES,
        **settings,
    }


def translate(raw):
    return families.of(raw, "here").translate(raw, "here")


@pytest.mark.parametrize("name", FAMILIES)
def test_an_absent_key_means_what_it_means_to_hugging_face_or_is_refused(name):
    raw = raw_config(name)
    family = families.of(raw, "here")
    theirs = getattr(transformers, FAMILIES[name][0] + "Config")
    keys = {setting.key for setting in family.settings.values()}
    keys |= {*family.refuse, *family.defaults, *WINDOWS, "norm_topk_prob", "decoder_sparse_step"}
    checked = set()
    for key in keys:
        default = getattr(theirs, key, None)
        if isinstance(default, property) or not hasattr(theirs, key):
            continue
        without = {k: v for k, v in raw.items() if k != key}
        try:
            found = translate(without)
        except UserError as error:
            assert "missing" in str(error) or "not supported" in str(error)
            continue
        assert found == translate({**without, key: default}), key
        checked.add(key)
    assert {"rms_norm_eps", "tie_word_embeddings"} <= checked


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 10}),
        ("mixtral", {"sliding_window": 10}),
        ("qwen2", {"use_sliding_window": False}),
        ("qwen2", {"num_hidden_layers": 4, "max_window_layers": 2}),
        ("qwen2", {"layer_types": ["sliding_attention", "full_attention"]}),
        ("qwen3", {"use_sliding_window": True, "max_window_layers": 0}),
        ("qwen3-moe", {"use_sliding_window": True, "sliding_window": 10}),
        ("gemma2", {"num_hidden_layers": 3}),
        ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}),
    ],
)
def test_windows_are_hugging_faces(name, keys):
    raw = {**raw_config(name), **keys}
    theirs = getattr(transformers, FAMILIES[name][0] + "Config")(
        **{k: v for k, v in raw.items() if k not in ("architectures", "model_type")}
    )
    settings = translate(raw)
    window = theirs.sliding_window
    types = getattr(theirs, "layer_types", None) or ["sliding_attention"] * theirs.num_hidden_layers
    expected = [window if window and kind == "sliding_attention" else None for kind in types]
    size, layers = settings["window_size"], settings.get("window_attn_skip_freq")
    layers = layers or [1] * theirs.num_hidden_layers
    assert [size[0] + 1 if size and on else None for on in layers] == expected


@pytest.mark.parametrize(
    ("name", "keys", "says"),
    [
        ("mistral", {"layer_types": ["full_attention"] * 2}, "layer_types"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types names 1 layers of 2"),
        ("gemma2", {"layer_types": ["full_attention", "linear_attention"]}, "'linear_attention'"),
        ("qwen2-moe", {"use_sliding_window": True}, "use_sliding_window=True is not supported"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("deepseek-v3", {"n_shared_experts": None}, "the key n_shared_experts is missing"),
        ("deepseek-v2", {"topk_method": "noaux_tc"}, "topk_method='noaux_tc' is not supported"),
    ],
)
def test_what_is_not_computed_is_refused(name, keys, says):
    with pytest.raises(UserError, match=says):
        translate({**raw_config(name), **keys})
