"""What `inspect`, `verify` and the dry run say; memory."""

import json
import random
import subprocess
import sys

import pytest
import torch

from benchmarks.convert import MODELS, run_apart, write_random_model
from benchmarks.shapes import SHAPES
from megarlhf.config.model_files import check_engine_weights, read_model_config
from megarlhf.errors import UserError
from megarlhf.models.weights import fingerprint
from tests.checkpoint_convert.models import convert, write_random
from tests.models.tiny import read_tensors
from tools.checkpoint_convert.cli import main


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_random(tmp_path_factory.mktemp("source") / "hf", "qwen2-moe", num_hidden_layers=2)


@pytest.fixture(scope="module")
def megatron(source):
    convert("hf-to-megatron", "--hf", source, "--out", source.parent / "m", "--pp", 2, "--ep", 4)
    return source.parent / "m"


def said_by(capsys, *arguments):
    """Exit status, and the lines by their first word."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    return status, capsys.readouterr().out


def properties(text):
    return {line[:13].strip(): line[14:] for line in text.splitlines()}


def test_inspect_says_what_is_there(source, megatron, capsys):
    of_megatron = properties(said_by(capsys, "inspect", megatron)[1])
    of_source = properties(said_by(capsys, "inspect", source)[1])
    assert of_megatron["kind"] == "Megatron"
    assert of_megatron["written for"] == "tensor 1, pipeline 2, virtual pipeline 1, expert 4"
    assert of_source["kind"] == "Hugging Face"
    assert of_source["fingerprint"] == "none"
    tensors = read_tensors(source)
    assert of_megatron["fingerprint"] == fingerprint.of_model(
        {name: fingerprint.of_tensor(tensor) for name, tensor in tensors.items()}
    )
    count = sum(tensor.numel() for tensor in tensors.values())
    for found in (of_megatron, of_source):
        assert found["architecture"] == "Qwen2MoeForCausalLM"
        assert found["parameters"] == f"{count:,}"
        assert found["dtype"] == f"bfloat16 ({count:,})"
        assert (found["layers"], found["experts"], found["embeddings"]) == ("2", "8", "untied")


def test_verify_names_what_differs(source, megatron, tmp_path, capsys):
    assert said_by(capsys, "verify", source, megatron)[0] == 0
    other = write_random(tmp_path / "other", "qwen2-moe", num_hidden_layers=2)
    from safetensors.torch import save_file

    tensors = read_tensors(other)
    tensors["model.norm.weight"][:2] = 3.0
    name = "model.layers.1.mlp.experts.7.down_proj.weight"
    tensors[name][0, 0] = float("nan")
    save_file(tensors, other / "model.safetensors")
    status, said = said_by(capsys, "verify", megatron, other)
    assert status == 1
    distance = (read_tensors(source)["model.norm.weight"][:2].float() - 3).abs().max()
    assert f"model.norm.weight: 2 of 32 elements, by up to {distance:.3g}\n" in said
    assert f"{name}: 1 of 768 elements, by up to inf\n" in said
    assert f"2 of {len(tensors)} tensors differ" in said

    wider = write_random(tmp_path / "wider", "qwen2-moe", num_hidden_layers=3, dtype=torch.float32)
    status, said = said_by(capsys, "verify", other, wider)
    assert status == 1
    assert "model.norm.weight: bfloat16 [32] in the first, float32 [32] in the second" in said
    assert "model.layers.2.input_layernorm.weight: only in the second" in said


def test_a_run_takes_a_converted_directory_unless_it_samples(source, megatron):
    assert read_model_config(str(megatron))["num_hidden_layers"] == 2
    check_engine_weights(str(source))
    with pytest.raises(UserError, match="which vLLM does not read"):
        check_engine_weights(str(megatron))


def test_a_fingerprint_does_not_depend_on_the_order(source):
    prints = {name: fingerprint.of_tensor(t) for name, t in read_tensors(source).items()}
    shuffled = list(prints.items())
    random.Random(0).shuffle(shuffled)
    assert fingerprint.of_model(dict(shuffled)) == fingerprint.of_model(prints)
    changed = {**prints, shuffled[0][0]: shuffled[1][1]}
    assert fingerprint.of_model(changed) != fingerprint.of_model(prints)


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        ("70B", "--tp 8 --pp 4", {"parameters": "70,553,706,496", "files": "32"}),
        ("235B-A22B", "--tp 2 --pp 4 --ep 8", {"parameters": "235,093,634,560", "files": "64"}),
    ],
)
def test_a_dry_run_of_a_large_model_needs_no_memory(tmp_path, model, options, expected):
    """Of the plan only: seen 8 MB and 180 MB, of 141 and 470 GB."""
    (tmp_path / "config.json").write_text(json.dumps(SHAPES[model]))
    arguments = ["hf-to-megatron", "--hf", str(tmp_path), "--out", "none", *options.split()]
    code = (
        "import resource, sys\n"
        "from tools.checkpoint_convert.cli import main\n"
        "usage = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = usage()\n"
        f"status = main({[*arguments, '--dry-run']!r})\n"
        "print('grown'.ljust(13), usage() - before)\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100
    )
    found = properties(done.stdout)
    assert {key: found[key] for key in expected} == expected
    assert int(found["bytes"].replace(",", "")) == 2 * int(found["parameters"].replace(",", ""))
    smallest, largest = (int(n.replace(",", "")) for n in found["bytes a file"].split(" to "))
    assert largest < 2.2 * smallest
    assert int(found["grown"]) < 300_000  # KiB
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_memory_does_not_grow_with_the_model(tmp_path):
    """Anonymous memory above the interpreter's, either way: seen 60 MB for 39 MB of model and 1 GB."""
    write_random_model(tmp_path / "hf", MODELS["tiny"])
    for command in (
        ["hf-to-megatron", "--hf", str(tmp_path / "hf"), "--out", str(tmp_path / "m")],
        ["megatron-to-hf", "--megatron", str(tmp_path / "m"), "--out", str(tmp_path / "back")],
    ):
        _, peak = run_apart(
            f"from tools.checkpoint_convert.cli import main\nassert main({command!r}) == 0"
        )
        assert peak < 150e6
