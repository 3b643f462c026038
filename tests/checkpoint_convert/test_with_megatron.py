"""What is converted, and what Megatron itself saves and loads, on real ranks."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights import megatron_metadata
from megarlhf.models.weights.megatron_plan import plan_checkpoint
from megarlhf.parallel.topology import Topology
from tests.checkpoint_convert import jobs
from tests.checkpoint_convert.models import convert, write_random
from tests.checkpoint_convert.test_round_trip import assert_same
from tests.models.jobs import load_and_export
from tests.models.tiny import read_tensors
from tests.models.zoo import write_model

CASES = {  # written under the first layout, loaded and saved under the second
    "llama": (["--tp", 4], {"pipeline": 2, "virtual_pipeline": 2}),
    "qwen2-tied": (["--pp", 3], {"tensor": 2, "sequence": True, "pipeline": 2}),
    "qwen3": (["--tp", 2, "--pp", 2], {}),
    "qwen2-moe": (["--tp", 2, "--ep", 4], {"expert": 2}),
    "qwen3-moe-mixed": (["--ep", 2, "--pp", 3], {"tensor": 2, "sequence": True, "expert": 2}),
    "deepseek-v3": (["--tp", 2, "--pp", 2, "--ep", 2], {"pipeline": 2, "expert": 2}),
    "gemma2": (["--tp", 4, "--pp", 3], {}),
}


@pytest.mark.parametrize("family", CASES)
def test_megatron_loads_what_is_converted_and_what_it_saves_converts(ranks, tmp_path, family):
    options, parallel = CASES[family]
    source = write_random(tmp_path / "hf", family, dtype=torch.float32)
    convert("hf-to-megatron", "--hf", source, "--out", tmp_path / "m", *options)
    saved = tmp_path / "saved"
    saved.mkdir()
    world = math.prod(size for key, size in parallel.items() if key in ("tensor", "pipeline"))
    world *= parallel.get("expert", 1)
    wrong = ranks.run(world, jobs.load_and_save, source, parallel, tmp_path / "m", saved)
    assert wrong == [[]] * world

    back = tmp_path / "back"
    convert("megatron-to-hf", "--megatron", saved, "--hf", source, "--out", back)
    assert_same(back, source)

    spec = ModelSpec.read(source)
    topology = Topology(
        world=world,
        tp=parallel.get("tensor", 1),
        pp=parallel.get("pipeline", 1),
        vpp=parallel.get("virtual_pipeline", 1),
        ep=parallel.get("expert", 1),
    )
    plan = plan_checkpoint(spec, topology, dict.fromkeys(spec.tensors, torch.float32))
    assert what_is_in(plan.metadata) == what_is_in(megatron_metadata.read(saved))


def what_is_in(metadata):
    """Every key with its shape and the boxes in which it is stored; random state left out."""
    found = {}
    for key, stored in metadata.state_dict_metadata.items():
        if not key.startswith("random"):
            boxes = getattr(stored, "chunks", [])
            boxes = sorted((tuple(box.offsets), tuple(box.sizes)) for box in boxes)
            found[key] = getattr(stored, "size", None), boxes
    return found


def test_both_kinds_compute_the_same_logits(ranks, tmp_path):
    """As close as fp32: 1e-5 of the largest logit; with Gemma's soft caps, which some kernels lack."""
    source, megatron = write_model("gemma2", tmp_path / "hf"), tmp_path / "m"
    convert("hf-to-megatron", "--hf", source, "--out", megatron, "--tp", 2)
    for other in (source, megatron):
        ((status, said),) = ranks.run(1, jobs.verify_logits, other, megatron)
        assert status == 0, said
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][0] *= 1.01
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    ((status, said),) = ranks.run(1, jobs.verify_logits, source, megatron)
    assert status == 1
    assert "model.norm.weight: 1 of 32 elements, by up to" in said


def test_processes_share_a_conversion(ranks, tmp_path):
    """Of a world that exists, and under torchrun."""
    source = write_random(tmp_path / "hf", "qwen3-moe", dtype=torch.float32)
    to = ("hf-to-megatron", "--hf", source, "--out", tmp_path / "m", "--tp", 2)
    back = ("megatron-to-hf", "--megatron", tmp_path / "m", "--out", tmp_path / "back")
    assert ranks.run(2, jobs.convert_together, *to) == [0, 0]
    assert ranks.run(2, jobs.convert_together, *to) == [2, 2]  # it is there already
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "tools.checkpoint_convert", *map(str, back)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'back'}: {len(read_tensors(source))} tensors, " + (
        f"{sum(tensor.nbytes for tensor in read_tensors(source).values()):,} bytes\n"
    )
    assert_same(tmp_path / "back", source)


def test_what_is_not_trained_is_exported_as_it_was(ranks, tmp_path):
    """DeepSeek-V3's expert biases are fp32 in a bf16 model; such a mixture converts, too."""
    source, exported = (
        write_random(tmp_path / "hf", "deepseek-v3", dtype=torch.float32),
        tmp_path / "e",
    )
    ranks.run(1, load_and_export, source, {}, exported, "bfloat16")
    before = load_file(source / "model.safetensors")
    for name, tensor in load_file(exported / "model.safetensors").items():
        dtype = torch.float32 if name.endswith("correction_bias") else torch.bfloat16
        assert tensor.dtype == dtype
        assert torch.equal(tensor, before[name].to(dtype))
    convert("hf-to-megatron", "--hf", exported, "--out", tmp_path / "m", "--tp", 2)
    convert("megatron-to-hf", "--megatron", tmp_path / "m", "--out", tmp_path / "back")
    assert_same(tmp_path / "back", exported)
