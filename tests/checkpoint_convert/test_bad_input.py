"""Each thing that can be wrong with a checkpoint is its own clear error, and nothing is left behind."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.loading import load_pretrained
from megarlhf.parallel.topology import Topology
from tests.checkpoint_convert.damage import NORM, change, cut, flip, refusal, rewrite_metadata
from tests.checkpoint_convert.models import convert, write_random
from tests.models.tiny import stand_ins
from tools.checkpoint_convert.checkpoints import open_checkpoint

HF_DAMAGE = {
    "truncated": (
        lambda d: cut(d / "model.safetensors"),
        ["not a whole safetensors file", "model.safetensors"],
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), ["no safetensors files"]),
    "a missing tensor": (
        lambda d: change(d / "model.safetensors", **{NORM: None}),
        [f"the tensor {NORM} is missing"],
    ),
    "another shape": (
        lambda d: change(d / "model.safetensors", **{NORM: torch.ones(31).bfloat16()}),
        [NORM, "(31,)", "(32,)"],
    ),
    "integers": (
        lambda d: change(d / "model.safetensors", **{NORM: torch.ones(32, dtype=torch.int8)}),
        [NORM, "has the dtype I8", "not quantized"],
    ),
    "one tensor in another dtype": (
        lambda d: change(d / "model.safetensors", **{NORM: torch.ones(32)}),
        [NORM, "torch.float32", "torch.bfloat16", "save the model in one dtype"],
    ),
    "an extra tensor": (
        lambda d: change(d / "model.safetensors", **{"adapter.weight": torch.ones(2)}),
        ["unexpected tensors", "adapter.weight"],
    ),
    "an unknown architecture": (
        lambda d: (d / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}'),
        ["MambaForCausalLM is not supported", "LlamaForCausalLM", "Qwen3MoeForCausalLM"],
    ),
    "no configuration": (lambda d: (d / "config.json").unlink(), ["config.json is missing"]),
}


@pytest.mark.parametrize("damage", HF_DAMAGE)
def test_a_bad_hugging_face_directory(copy, capsys, damage):
    act, says = HF_DAMAGE[damage]
    act(copy / "hf")
    said = refusal(capsys, "hf-to-megatron", "--hf", copy / "hf", "--out", copy / "out")
    assert str(copy / "hf") in said
    assert all(text in said for text in says), said
    assert not (copy / "out").exists()


def forget_a_chunk(content):
    index = next(i for i in content.storage_data if i.fqn.endswith("linear_fc2.weight"))
    del content.storage_data[index]


def point_elsewhere(content):
    next(iter(content.storage_data.values())).relative_path = "../hf/model.safetensors"


def grow_a_tensor(content):
    stored = content.state_dict_metadata["decoder.final_layernorm.weight"]
    stored.size = torch.Size([33])


def add_a_tensor(content):
    known = content.state_dict_metadata
    known["decoder.layers.mlp.linear_fc1.bias"] = known["decoder.final_layernorm.weight"]


MEGATRON_DAMAGE = {
    "half-written": (
        lambda d: (d / "metadata.json").unlink(),
        ["not a whole checkpoint", "metadata.json is missing"],
    ),
    "a missing shard": (lambda d: (d / "__1_0.distcp").unlink(), ["missing", "__1_0.distcp"]),
    "a truncated shard": (
        lambda d: cut(d / "__1_0.distcp"),
        ["the file ends before the tensor", "__1_0.distcp"],
    ),
    "a shard of another checkpoint": (
        lambda d: (d / "__1_0.distcp").write_bytes(b"\0" * (d / "__1_0.distcp").stat().st_size),
        ["are not the tensor", "__1_0.distcp"],
    ),
    "truncated metadata": (lambda d: cut(d / ".metadata"), ["does not parse", ".metadata"]),
    "a chunk in no file": (
        lambda d: rewrite_metadata(d, forget_a_chunk),
        ["linear_fc2.weight is not in any file"],
    ),
    "a file elsewhere": (
        lambda d: rewrite_metadata(d, point_elsewhere),
        ["'../hf/model.safetensors' is not the name of a file beside it"],
    ),
    "another shape": (
        lambda d: rewrite_metadata(d, grow_a_tensor),
        ["decoder.final_layernorm.weight has shape (33,)", "(32,)"],
    ),
    "an extra tensor": (
        lambda d: rewrite_metadata(d, add_a_tensor),
        ["unexpected tensors", "decoder.layers.mlp.linear_fc1.bias"],
    ),
    "another format": (
        lambda d: (d / "metadata.json").write_text('{"sharded_backend": "zarr"}'),
        ["'zarr'", "torch_dist"],
    ),
    "no configuration": (lambda d: (d / "config.json").unlink(), ["no config.json", "--hf DIR"]),
}


@pytest.mark.parametrize("damage", MEGATRON_DAMAGE)
def test_a_bad_megatron_directory(copy, capsys, damage):
    act, says = MEGATRON_DAMAGE[damage]
    act(copy / "megatron")
    said = refusal(capsys, "megatron-to-hf", "--megatron", copy / "megatron", "--out", copy / "out")
    assert str(copy / "megatron") in said
    assert all(text in said for text in says), said
    assert not (copy / "out").exists()


def test_an_index_that_names_a_missing_shard(copy, capsys):
    names = load_file(copy / "hf/model.safetensors")
    (copy / "hf/model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(names, "gone")}
    (copy / "hf/model.safetensors.index.json").write_text(json.dumps(index))
    to = ("hf-to-megatron", "--hf", copy / "hf", "--out", copy / "out")
    assert "shards named by the index are missing: gone" in refusal(capsys, *to)
    index = {"weight_map": {NORM: "../megatron/common.pt"}}
    (copy / "hf/model.safetensors.index.json").write_text(json.dumps(index))
    assert "not beside it: ../megatron/common.pt" in refusal(capsys, *to)


def test_what_else_lies_in_a_hugging_face_directory(copy, capsys):
    """As transformers has it: ``model.safetensors`` is the model, and there may be a metadata.json."""
    shutil.copy(copy / "hf/model.safetensors", copy / "hf/consolidated.safetensors")
    index = {"weight_map": {NORM: "consolidated.safetensors", "w": "gone.safetensors"}}
    (copy / "hf/model.safetensors.index.json").write_text(json.dumps(index))
    (copy / "hf/metadata.json").write_text("{}")
    convert("verify", copy / "hf", copy / "megatron")


def test_a_second_copy_of_tied_embeddings(tmp_path, capsys):
    """Is left out where it is one; another tensor would be the head for Hugging Face."""
    source = write_random(tmp_path / "hf", "qwen2-tied", num_hidden_layers=1)
    file = source / "model.safetensors"
    second = load_file(file)["model.embed_tokens.weight"].clone()
    change(file, **{"lm_head.weight": second})
    convert("hf-to-megatron", "--hf", source, "--out", tmp_path / "m")
    assert "left out, as the model does not use them: lm_head.weight" in capsys.readouterr().out
    second[5, 5] += 1
    change(file, **{"lm_head.weight": second})
    said = refusal(capsys, "hf-to-megatron", "--hf", source, "--out", tmp_path / "out")
    assert "ties lm_head.weight to model.embed_tokens.weight, but they are different" in said
    spec, topology = ModelSpec.read(source), Topology(world=1)
    with pytest.raises(UserError, match="set tie_word_embeddings to false"):
        load_pretrained(spec, topology, 0, stand_ins(spec, topology, 0))


def test_a_flipped_bit_is_found_and_its_tensor_named(copy, capsys):
    """By the converter, by a comparison, and by a run that loads the checkpoint."""
    (run,) = open_checkpoint(copy / "megatron").files.tensors[NORM].runs
    flip(copy / "megatron" / run.file, run.offset + 5)
    out = ("--out", copy / "out")
    said = refusal(capsys, "megatron-to-hf", "--megatron", copy / "megatron", *out)
    expected = f"the tensor {NORM} is not the one that the fingerprint was taken of"
    assert expected in said
    assert str(copy / "megatron/fingerprint.json") in said
    assert not (copy / "out").exists()
    assert expected in refusal(capsys, "verify", copy / "hf", copy / "megatron")
    spec, topology = ModelSpec.read(copy / "megatron"), Topology(world=1)
    with pytest.raises(UserError, match=expected):
        load_pretrained(spec, topology, 0, stand_ins(spec, topology, 0))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "does not parse"),
        ('{"algorithm": "md5", "tensors": {}, "model": ""}', "'md5' is not known"),
        ('{"algorithm": "xxh3-128", "tensors": {}, "model": ""}', "changed by hand"),
    ],
)
def test_a_bad_fingerprint(copy, capsys, content, says):
    (copy / "hf/fingerprint.json").write_text(content)
    assert says in refusal(capsys, "hf-to-megatron", "--hf", copy / "hf", "--out", copy / "out")


def test_nan_is_named_and_kept(copy, caplog):
    bad = torch.ones(32).bfloat16()
    bad[3] = float("inf")
    change(copy / "hf/model.safetensors", **{NORM: bad})
    convert("hf-to-megatron", "--hf", copy / "hf", "--out", copy / "out")
    (warning,) = caplog.records
    assert f"the tensor {NORM} has NaN or Inf in it" in warning.getMessage()
    convert("verify", copy / "out", copy / "hf")
