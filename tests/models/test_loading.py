"""Loading into stand-ins for Megatron's chunks: the layout map says what they hold."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import parameters_of
from megarlhf.models.weights.loading import load_pretrained
from megarlhf.parallel.topology import Topology
from tests.models.tiny import StandIn, read_tensors, stand_ins, write_llama

TP2 = Topology(world=2, tp=2)


@pytest.fixture
def model(tmp_path):
    return write_llama(tmp_path / "model")


def load(directory, topology=TP2, rank=1):
    spec = ModelSpec.read(directory)
    chunks = stand_ins(spec, topology, rank)
    load_pretrained(spec, topology, rank, chunks)
    return chunks


def cut_in_shards(directory):
    """Rewrite a single file as three with an index; returns the index."""
    tensors = read_tensors(directory)
    (directory / "model.safetensors").unlink()
    weight_map = {name: f"shard-{i % 3}.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        part = {name: tensors[name] for name in tensors if weight_map[name] == file}
        save_file(part, directory / file, metadata={"format": "pt"})
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_shards_load_as_the_single_file_does(model):
    (single,) = load(model)
    cut_in_shards(model)
    (sharded,) = load(model)
    for (name, one), (other, two) in zip(
        single.named_parameters(), sharded.named_parameters(), strict=True
    ):
        assert name == other
        assert torch.equal(one, two)


def test_the_padded_rows_of_the_vocabulary_are_zero(model):
    (chunk,) = load(model, Topology(world=4, tp=4), rank=3)  # rows 78 to 103 of 101
    rows = dict(chunk.named_parameters())["embedding.word_embeddings.weight"]
    whole = read_tensors(model)["model.embed_tokens.weight"]
    assert torch.equal(rows[:23], whole[78:])
    assert rows.shape[0] == 26
    assert not rows[23:].any()


def test_a_bfloat16_checkpoint_loads_into_float32(tmp_path):
    (chunk,) = load(write_llama(tmp_path, dtype="bfloat16"))
    norm = dict(chunk.named_parameters())["decoder.final_layernorm.weight"]
    assert norm.dtype == torch.float32
    assert torch.equal(norm, read_tensors(tmp_path)["model.norm.weight"].float())


def remove_a_tensor(model):
    tensors = read_tensors(model)
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    save_file(tensors, model / "model.safetensors")
    return ["the tensor model.layers.1.self_attn.k_proj.weight is missing", model]


def transpose_a_tensor(model):
    tensors = read_tensors(model)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].t().contiguous()
    save_file(tensors, model / "model.safetensors")
    return [name, "(32, 48)", "(48, 32)", model / "model.safetensors"]


def truncate(model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return ["not a whole safetensors file", file]


def truncate_in_the_header(model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    return ["not a whole safetensors file", file]


def truncate_a_shard(model):
    cut_in_shards(model)
    file = model / "shard-1.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return ["not a whole safetensors file", file]


def remove_all(model):
    (model / "model.safetensors").unlink()
    return ["there are no safetensors files", model]


def remove_a_shard(model):
    index = cut_in_shards(model)
    (model / "shard-2.safetensors").unlink()
    return ["shard-2.safetensors", index]


def break_the_index(model):
    index = cut_in_shards(model)
    index.write_text(index.read_text()[:-10])
    return ["the index does not parse", index]


def name_the_wrong_shard(model):
    index = cut_in_shards(model)
    names = json.loads(index.read_text())["weight_map"]
    name, file = next(iter(names.items()))
    other = next(f for f in names.values() if f != file)
    index.write_text(json.dumps({"weight_map": {**names, name: other}}))
    return [name, model / other]


@pytest.mark.parametrize(
    "damage",
    [
        remove_a_tensor,
        transpose_a_tensor,
        truncate,
        truncate_in_the_header,
        truncate_a_shard,
        remove_all,
        remove_a_shard,
        break_the_index,
        name_the_wrong_shard,
    ],
)
def test_damage_is_reported_with_its_place(model, damage):
    says = damage(model)
    with pytest.raises(UserError) as error:
        load(model)
    for text in says:
        assert str(text) in str(error.value)


def test_the_map_and_the_model_must_agree(model):
    spec = ModelSpec.read(model)
    held = parameters_of(spec, TP2, rank=0)
    with pytest.raises(ValueError, match=r"without an entry .*surplus\.weight"):
        surplus = replace(held[0], name="surplus.weight")
        load_pretrained(spec, TP2, 0, [StandIn([*held, surplus])])
    with pytest.raises(ValueError, match="the layout map says"):
        wider = replace(held[0], shape=(held[0].shape[0], 33))
        load_pretrained(spec, TP2, 0, [StandIn([wider, *held[1:]])])


def test_ranks_read_only_their_own_slices(model, monkeypatch):
    """Two tensor-parallel ranks read what is cut once between them, and the norms twice."""
    from megarlhf.models.weights import loading

    read = []

    class Counting:
        def __init__(self, lazy):
            self.lazy = lazy

        def __getitem__(self, slices):
            values = self.lazy[slices]
            read.append(values.numel())
            return values

    original = loading.HuggingFaceFiles.slice_of
    monkeypatch.setattr(
        loading.HuggingFaceFiles, "slice_of", lambda self, name: Counting(original(self, name))
    )
    per_rank = []
    for rank in (0, 1):
        load(model, TP2, rank)
        per_rank.append(sum(read))
        read.clear()
    tensors = read_tensors(model).values()
    norms = sum(tensor.numel() for tensor in tensors if tensor.ndim == 1)
    assert sum(per_rank) == sum(tensor.numel() for tensor in tensors) + norms
    one_row = 2 * 32  # of the embedding and the output layer: 101 rows are cut 51 to 50
    assert per_rank[0] - per_rank[1] == one_row
