"""What `megarlhf generate` samples from and what it keeps."""

from pathlib import Path

import pytest
import torch

from megarlhf.config import schema
from megarlhf.config.loader import load
from megarlhf.errors import UserError
from megarlhf.models.lora.adapter import PREFIX
from megarlhf.models.spec import ModelSpec
from megarlhf.report import jsonl
from megarlhf.trainer.generated_files import GeneratedFiles
from megarlhf.trainer.sampled_model import check_adapters, sampled_model
from tests.lora.jobs import write_adapters
from tests.models.tiny import read_tensors, write_llama


def test_engines_load_the_model_with_its_adapters_merged(tmp_path):
    model, out = write_llama(tmp_path / "model"), tmp_path / "out"
    tensors = write_adapters(tmp_path / "adapter", model, targets=("q_proj",))
    settings = [f"model.path={model}", "model.dtype=float32", f"output.dir={out}"]
    config = load(schema.RLConfig, None, [*settings, f"lora.path={tmp_path / 'adapter'}"])
    with sampled_model(config) as sampled:
        found, base = read_tensors(Path(sampled.model.path)), read_tensors(model)
    name = "model.layers.1.self_attn.q_proj."
    down, up = (tensors[f"{PREFIX}{name}lora_{matrix}.weight"] for matrix in "AB")
    expected = base[f"{name}weight"] + 7 / 3 * up @ down
    assert torch.allclose(found[f"{name}weight"], expected, atol=1e-6)
    assert torch.equal(found["lm_head.weight"], base["lm_head.weight"])
    assert not (out / "merged").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["lora.rank=4"], "lora.rank: nothing is trained here, and new adapters add nothing"),
        (["lora.path=ADAPTER", "lora.base=nf4"], "lora.base: is nf4, but adapters are sampled"),
        (["lora.path=nowhere"], "adapter_config.json is missing"),
    ],
)
def test_adapters_that_cannot_be_sampled_with(tmp_path, settings, said):
    model = write_llama(tmp_path / "model")
    write_adapters(tmp_path / "adapter", model)
    settings = [setting.replace("ADAPTER", str(tmp_path / "adapter")) for setting in settings]
    config = load(schema.RLConfig, None, [f"model.path={model}", *settings])
    with pytest.raises(UserError) as refused:
        check_adapters(config, ModelSpec.read(model))
    assert said in str(refused.value)


def test_best_and_pairs_of_what_was_sampled(tmp_path):
    def response(text, reward, finish="stop"):
        return {"text": text, "reward": reward, "finish_reason": finish, "tokens": 1}

    responses = {
        0: [response("a", 0.5), response("b", 1.0), response("c", 0.0)],
        1: [response("cut", 9.0, "length"), response("same", 1.0), response("too", 1.0)],
        2: [response("cut", 1.0, "length"), response("unscored", None)],
    }
    for step, group in responses.items():
        record = {"step": step, "prompt": f"p{step}", "label": None, "responses": group}
        jsonl.append(tmp_path / "samples.jsonl", record)
    summary = GeneratedFiles(tmp_path, {}).select()
    assert [(r["input"], r["output"]) for r in jsonl.read(tmp_path / "best.jsonl")] == [
        ("p0", "b"),
        ("p1", "same"),
    ]
    (pair,) = jsonl.read(tmp_path / "pairs.jsonl")
    assert (pair["chosen"], pair["rejected"], pair["margin"]) == ("b", "c", 1.0)
    assert (summary["responses"], summary["best"], summary["pairs"]) == (7, 2, 1)


def test_what_a_killed_run_left_of_a_line_goes(tmp_path):
    whole = '{"step": 3, "responses": []}\n'
    (tmp_path / "samples.jsonl").write_text(whole + '{"step": 4, "prompt"')
    assert GeneratedFiles(tmp_path, {}).go_on() == {3}
    assert (tmp_path / "samples.jsonl").read_text() == whole
