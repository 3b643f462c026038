"""Hugging Face to Megatron and back, bit by bit, for every family and layout; one process."""

import json
from dataclasses import replace

import pytest
import torch

from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights import fingerprint, megatron_metadata, megatron_names
from megarlhf.models.weights.layout import parameters_of
from megarlhf.models.weights.loading import load_pretrained
from megarlhf.parallel.topology import Topology
from tests.checkpoint_convert.models import convert, write_random
from tests.models.tiny import read_tensors, stand_ins
from tests.models.zoo import FAMILIES, MIXTURES

LAYOUTS = {
    "tp2": {"tp": 2},
    "tp4": {"tp": 4},  # more ranks than key heads; 101 rows of vocabulary are padded to 104
    "pp2": {"pp": 2},
    "pp3": {"pp": 3},  # 5 layers: stages of 1, 3 and 1, or as the topology cuts them
    "pp2.vpp2": {"pp": 2, "vpp": 2},
    "tp2.pp3": {"tp": 2, "pp": 3},
}
MIXTURE_LAYOUTS = {
    "ep2": {"ep": 2},
    "ep4": {"ep": 4},
    "tp2.pp2.ep2": {"tp": 2, "pp": 2, "ep": 2},
}
CASES = [(family, layout) for family in FAMILIES for layout in ("tp1", *LAYOUTS)] + [
    (family, layout) for family in sorted(MIXTURES) for layout in MIXTURE_LAYOUTS
]
SIZES = {"tp1": {}, **LAYOUTS, **MIXTURE_LAYOUTS}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {family: write_random(root / family, family) for family in FAMILIES}


def options_of(layout):
    return [word for key, size in SIZES[layout].items() for word in (f"--{key}", size)]


def assert_same(directory, other):
    ours, theirs = read_tensors(directory), read_tensors(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_there_and_back_is_the_same_bit_by_bit(models, tmp_path, family, layout):
    source, megatron, back = models[family], tmp_path / "megatron", tmp_path / "back"
    convert("hf-to-megatron", "--hf", source, "--out", megatron, *options_of(layout))
    convert("megatron-to-hf", "--megatron", megatron, "--out", back)
    assert_same(back, source)
    assert json.loads((back / "config.json").read_text()) == json.loads(
        (source / "config.json").read_text()
    )
    for file in ("tokenizer.model", "additional_chat_templates/tools.jinja"):
        assert (back / file).read_bytes() == (source / file).read_bytes()
    assert fingerprint.read(megatron) == fingerprint.read(back)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "megatron"]


@pytest.mark.parametrize("family", ["qwen2-tied", "deepseek-v3"])
def test_a_run_loads_any_layout_from_what_was_written_for_another(models, tmp_path, family):
    """As from the Hugging Face directory itself, every rank of every layout."""
    source, megatron = models[family], tmp_path / "megatron"
    convert("hf-to-megatron", "--hf", source, "--out", megatron, "--tp", 2, "--pp", 3)
    for topology in (Topology(world=1), Topology(world=4, tp=4), Topology(world=4, pp=2, vpp=2)):
        for rank in range(topology.world):
            loaded = []
            for directory in (source, megatron):
                spec = ModelSpec.read(directory)
                chunks = stand_ins(spec, topology, rank)
                load_pretrained(spec, topology, rank, chunks)
                loaded.append([dict(chunk.named_parameters()) for chunk in chunks])
            assert sum(map(len, loaded[0])) == len(parameters_of(spec, topology, rank))
            for ours, theirs in zip(*loaded, strict=True):
                assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_tied_model_and_then_an_untied_one(tmp_path):
    """In one process: neither changes what the other is."""
    for turn, tied in enumerate((True, False, True)):
        source = write_random(
            tmp_path / f"hf{turn}",
            "qwen2",
            tie_word_embeddings=tied,
            seed=turn,
            num_hidden_layers=2,
        )
        megatron, back = tmp_path / f"megatron{turn}", tmp_path / f"back{turn}"
        convert("hf-to-megatron", "--hf", source, "--out", megatron, "--tp", 2, "--pp", 2)
        convert("megatron-to-hf", "--megatron", megatron, "--out", back)
        assert_same(back, source)
        assert ("lm_head.weight" in read_tensors(back)) is not tied


def test_a_reward_model_keeps_its_head(tmp_path):
    source = write_random(tmp_path / "hf", "llama", num_hidden_layers=2)
    config = json.loads((source / "config.json").read_text())
    config |= {
        "architectures": ["LlamaForSequenceClassification"],
        "id2label": {"0": "LABEL_0"},
        "value_prefix_head": "value",
        "pad_token_id": 0,
    }
    (source / "config.json").write_text(json.dumps(config))
    tensors = read_tensors(source)
    tensors["value.weight"] = torch.randn(1, 32).bfloat16()
    del tensors["lm_head.weight"]
    from safetensors.torch import save_file

    save_file(tensors, source / "model.safetensors")
    convert("hf-to-megatron", "--hf", source, "--out", tmp_path / "m", "--tp", 2, "--pp", 2)
    convert("megatron-to-hf", "--megatron", tmp_path / "m", "--out", tmp_path / "back")
    assert_same(tmp_path / "back", source)


@pytest.mark.parametrize("family", ["qwen2", "deepseek-v3"])
def test_norms_in_linears_as_with_transformer_engine(models, tmp_path, family):
    """Their names are Transformer Engine's; the metadata is rewritten, as there is none here."""
    megatron = tmp_path / "megatron"
    convert("hf-to-megatron", "--hf", models[family], "--out", megatron, "--pp", 2)
    content = megatron_metadata.read(megatron)
    names = {own: fused for fused, own in megatron_names._FUSED_NORMS.items()}
    is_latent = family == "deepseek-v3"
    if is_latent:  # its attention's norm is a module, and the experts' is
        del names["input_layernorm.weight"], names["pre_mlp_layernorm.weight"]

    def fuse(key):
        own = next((own for own in names if key.endswith(f".{own}")), None)
        return key if own is None else key.removesuffix(own) + names[own]

    content.state_dict_metadata = {fuse(k): v for k, v in content.state_dict_metadata.items()}
    content.storage_data = {
        replace(index, fqn=fuse(index.fqn)): place for index, place in content.storage_data.items()
    }
    assert any("layer_norm_weight" in key for key in content.state_dict_metadata)
    megatron_metadata.write(megatron, content, {})
    convert("megatron-to-hf", "--megatron", megatron, "--out", tmp_path / "back")
    assert_same(tmp_path / "back", models[family])


def test_several_shards_are_indexed(models, tmp_path, monkeypatch):
    from tools.checkpoint_convert import targets

    monkeypatch.setattr(targets, "SHARD_BYTES", 20_000)
    convert("hf-to-megatron", "--hf", models["llama"], "--out", tmp_path / "m", "--pp", 2)
    convert("megatron-to-hf", "--megatron", tmp_path / "m", "--out", tmp_path / "back")
    assert_same(tmp_path / "back", models["llama"])
    index = json.loads((tmp_path / "back/model.safetensors.index.json").read_text())
    files = {file.name for file in (tmp_path / "back").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files
    assert len(files) > 2
