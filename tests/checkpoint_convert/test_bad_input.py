"""Each thing that can be wrong with a checkpoint is its own clear error, and nothing is left behind."""

import errno
import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights import row_files
from megarlhf.models.weights.loading import load_huggingface
from megarlhf.parallel.topology import Topology
from tests.checkpoint_convert.models import convert, write_random
from tests.models.tiny import stand_ins
from tools.checkpoint_convert.checkpoints import open_checkpoint
from tools.checkpoint_convert.cli import main

NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A Hugging Face directory and what was made of it, which nobody changes."""
    root = tmp_path_factory.mktemp("whole")
    write_random(root / "hf", "qwen2", num_hidden_layers=2)
    convert("hf-to-megatron", "--hf", root / "hf", "--out", root / "megatron", "--tp", 2)
    return root


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def refusal(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def change(file, **tensors):
    content = {**load_file(file), **tensors}
    save_file({n: t for n, t in content.items() if t is not None}, file)


def rewrite_metadata(directory, act):
    content = pickle.loads((directory / ".metadata").read_bytes())
    act(content)
    (directory / ".metadata").write_bytes(pickle.dumps(content))


def cut(file, nbytes=2000):
    os.truncate(file, file.stat().st_size - nbytes)


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


class Malicious:
    """Pickles as a call."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("call", [os.system, eval, exec, getattr, torch.load, __import__])
def test_metadata_cannot_run_anything(copy, capsys, call):
    evil = copy / "evil"
    argument = f"touch {evil}" if call is os.system else f"open({str(evil)!r}, 'w')"
    for content in (Malicious(call, argument), [1, {"state": Malicious(call, argument)}]):
        (copy / "megatron/.metadata").write_bytes(pickle.dumps(content))
        for command in (
            ("megatron-to-hf", "--megatron", copy / "megatron", "--out", copy / "out"),
            ("verify", copy / "megatron", copy / "hf"),
            ("inspect", copy / "megatron"),
        ):
            assert f"{call.__name__}, which has no place there" in refusal(capsys, *command)
    assert not evil.exists()


def test_common_pt_cannot_run_anything(copy, capsys):
    evil = copy / "evil"
    common = copy / "megatron/common.pt"
    whole_one = common.read_bytes()
    torch.save(Malicious(os.system, f"touch {evil}"), common)
    for damage in (None, whole_one[:300], whole_one[:-40]):
        if damage is not None:
            common.write_bytes(damage)
        assert main(["inspect", str(copy / "megatron")]) == 0
        assert "a layout that is not noted" in capsys.readouterr().out
    assert not evil.exists()


def flip(file, offset):
    with file.open("r+b") as opened:
        opened.seek(offset)
        (byte,) = opened.read(1)
        opened.seek(offset)
        opened.write(bytes([byte ^ 1]))


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
        load_huggingface(spec, topology, 0, stand_ins(spec, topology, 0))


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


def test_a_full_disk(whole, tmp_path, capsys, monkeypatch):
    to = ("hf-to-megatron", "--hf", whole / "hf", "--out", tmp_path / "out")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(row_files.os, "pwrite", full)
        assert "there is no space left to write to" in refusal(capsys, *to)
    with monkeypatch.context() as patch:
        usage = shutil._ntuple_diskusage(10**9, 10**9, 1000)
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        assert "there is no space for 0.1 MB: 0.0 MB are free" in refusal(capsys, *to)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_full_only_when_it_is_flushed(whole, tmp_path, capsys, monkeypatch):
    def flush(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(row_files.os, "fdatasync", flush)
    to = ("hf-to-megatron", "--hf", whole / "hf", "--out", tmp_path / "out")
    assert "there is no space left to write to" in refusal(capsys, *to)
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_overwritten(whole, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("out", "link"):
        to = ("hf-to-megatron", "--hf", whole / "hf", "--out", tmp_path / name)
        assert f"{tmp_path / name}: it exists already" in refusal(capsys, *to)


def test_a_place_that_is_not_to_be_written_to(whole, capsys):
    to = ("hf-to-megatron", "--hf", whole / "hf", "--out", "/dev/null/out")
    assert "/dev/null/out.partial: Not a directory" in refusal(capsys, *to)
    to = ("hf-to-megatron", "--hf", whole / "hf", "--out", whole / ("n" * 300))
    assert "File name too long" in refusal(capsys, *to)


def test_what_else_lies_in_a_hugging_face_directory(copy, capsys):
    """As transformers has it: ``model.safetensors`` is the model, and there may be a metadata.json."""
    shutil.copy(copy / "hf/model.safetensors", copy / "hf/consolidated.safetensors")
    index = {"weight_map": {NORM: "consolidated.safetensors", "w": "gone.safetensors"}}
    (copy / "hf/model.safetensors.index.json").write_text(json.dumps(index))
    (copy / "hf/metadata.json").write_text("{}")
    convert("verify", copy / "hf", copy / "megatron")


def test_logits_of_different_kinds(copy, whole, capsys):
    config = json.loads((copy / "hf/config.json").read_text())
    config |= {"architectures": ["Qwen2ForSequenceClassification"], "id2label": {"0": "score"}}
    (copy / "hf/config.json").write_text(json.dumps(config))
    change(copy / "hf/model.safetensors", **{"score.weight": torch.ones(1, 32).bfloat16()})
    said = refusal(capsys, "verify", whole / "hf", copy / "hf", "--logits")
    assert "one computes 101 logits, the other scores" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--tp", 3], ["--tp", "must divide the model's num_attention_heads (4), got 3"]),
        (["--pp", 7], ["--pp", "at most the model's num_hidden_layers (2)"]),
        (["--vpp", 2], ["--vpp", "needs --pp > 1"]),
        (["--ep", 2], ["--ep", "the model has no experts"]),
        (["--tp", 0], ["--tp", "at least 1"]),
    ],
)
def test_a_layout_that_does_not_fit(whole, tmp_path, capsys, options, says):
    to = ("hf-to-megatron", "--hf", whole / "hf", "--out", tmp_path / "out")
    said = refusal(capsys, *to, *options)
    assert all(text in said for text in says), said


def test_a_directory_above_checkpoints_and_none(whole, tmp_path, capsys):
    to = ("megatron-to-hf", "--megatron", tmp_path / "run", "--out", tmp_path / "out")
    assert "no such directory" in refusal(capsys, *to)
    shutil.copytree(whole / "megatron", tmp_path / "run/iter_0000020")
    (tmp_path / "run/latest_checkpointed_iteration.txt").write_text("20\n")
    assert "the latest is of iteration 20" in refusal(capsys, *to)


def test_the_wrong_direction(whole, tmp_path, capsys):
    out = ("--out", tmp_path / "out")
    assert "Megatron's kind, not Hugging Face's" in refusal(
        capsys, "hf-to-megatron", "--hf", whole / "megatron", *out
    )
    assert "Hugging Face's kind, not Megatron's" in refusal(
        capsys, "megatron-to-hf", "--megatron", whole / "hf", *out
    )


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
