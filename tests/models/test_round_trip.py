"""Hugging Face to Megatron, on real ranks, and back."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.models import jobs
from tests.models.tiny import read_tensors
from tests.models.zoo import write_model

LAYOUTS = {
    "tp2": (2, {"tensor": 2}),
    "pp2": (2, {"pipeline": 2}),
    "pp2.vpp2": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "tp2.pp2": (4, {"tensor": 2, "pipeline": 2}),
    "tp2.dp2": (4, {"tensor": 2}),
}


def assert_same_tensors(directory: Path, other: Path) -> None:
    ours, theirs = read_tensors(directory), read_tensors(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_export_gives_the_loaded_tensors_back(ranks, llama, tmp_path, layout):
    world, parallel = LAYOUTS[layout]
    ranks.run(world, jobs.load_and_export, llama, parallel, tmp_path / "out")
    assert_same_tensors(tmp_path / "out", llama)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    source = AutoModelForCausalLM.from_pretrained(llama)
    ids = torch.arange(10)[None]
    assert torch.equal(model(ids).logits, source(ids).logits)


def test_export_writes_the_models_dtype(ranks, llama, tmp_path):
    out = tmp_path / "out"
    ranks.run(2, jobs.load_and_export, llama, {"tensor": 2}, out, "bfloat16")
    source = read_tensors(llama)
    for name, tensor in read_tensors(out).items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, source[name].bfloat16())
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


def test_an_expert_bias_stays_as_it_is(ranks, tmp_path):
    """Rounded, it would choose other experts."""
    source, out = write_model("deepseek-v3", tmp_path / "model"), tmp_path / "out"
    ranks.run(1, jobs.load_and_export, source, {}, out, "bfloat16")
    theirs = read_tensors(source)
    for name, tensor in read_tensors(out).items():
        kept = name.endswith("e_score_correction_bias")
        assert tensor.dtype == (torch.float32 if kept else torch.bfloat16)
        assert torch.equal(tensor, theirs[name] if kept else theirs[name].bfloat16())
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.model.layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32


def test_shards_are_written_by_all_ranks_and_indexed(ranks, llama, tmp_path):
    """Shards of at most 10 kB: each embedding (101 x 32 x 4 bytes) is larger and has its own."""
    out = tmp_path / "out"
    ranks.run(2, jobs.load_and_export, llama, {"tensor": 2}, out, "float32", 10_000)
    assert_same_tensors(out, llama)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(file.name for file in out.glob("*.safetensors"))
    assert files == sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert len(files) > 2
    tensors = read_tensors(out)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    AutoModelForCausalLM.from_pretrained(out)


def test_a_directory_is_replaced_as_a_whole(ranks, llama, tmp_path):
    out = tmp_path / "out"
    ranks.run(2, jobs.load_and_export, llama, {"tensor": 2}, out, "float32", 10_000)
    (out / "left over").write_text("")
    for left_by_a_killed_export in ("out.partial", "out.previous"):
        (tmp_path / left_by_a_killed_export).mkdir()
        (tmp_path / left_by_a_killed_export / "half.safetensors").write_text("")
    (llama / "chat_template.jinja").write_text("{{ messages }}")
    (llama / "pytorch_model.bin").write_text("not a companion")
    try:
        ranks.run(2, jobs.load_and_export, llama, {"tensor": 2}, out)
    finally:
        (llama / "chat_template.jinja").unlink()
        (llama / "pytorch_model.bin").unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    written = {path.name for path in out.iterdir()}
    given = {file.name for file in llama.iterdir()}
    assert written == given | {"chat_template.jinja", "fingerprint.json"}
    config = json.loads((out / "config.json").read_text())
    assert config == json.loads((llama / "config.json").read_text())


def test_a_failed_export_leaves_the_directory_as_it_was(ranks, llama, tmp_path):
    out = tmp_path / "out"
    ranks.run(1, jobs.load_and_export, llama, {}, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    refusals = ranks.run(2, jobs.export_to_a_full_disk, llama, out)
    assert len(set(refusals)) == 1
    assert refusals[0].startswith(f"{out}.partial: there is no space left")
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
