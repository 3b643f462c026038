"""Commands that cannot be done say why: no room, a place that is taken, a layout that does not fit."""

import errno
import json
import shutil

import pytest
import torch

from megarlhf.models.weights import row_files
from tests.checkpoint_convert.damage import change, refusal


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
