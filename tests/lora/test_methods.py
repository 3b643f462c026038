"""Offline methods with adapters: a layout takes the steps of one rank; commands go on."""

import json
import shutil

import pytest
import torch

from megarlhf.cli import main
from megarlhf.config import schema
from megarlhf.config.loader import load
from megarlhf.demo.model import make_model
from megarlhf.errors import UserError
from megarlhf.models.lora import base_print, peft_config
from megarlhf.trainer.offline_inputs import prepare
from tests.models.tiny import read_tensors
from tests.models.zoo import write_model
from tests.trainer.offline_jobs import make_examples, run_commands, train_methods
from tests.trainer.test_offline_methods import TOLERANCE, differences

LORA = ["lora.rank=4", "lora.alpha=32"]
CLASSES = (schema.RMConfig, schema.DPOConfig, schema.KTOConfig)  # with a head, and with a reference


def test_methods_in_another_layout(ranks, tmp_path):
    model = write_model("llama", tmp_path / "model")
    runs = [(cls, LORA) for cls in CLASSES]
    data = make_examples(101, 12), make_examples(101, 5, seed=1)
    expected, found = (
        ranks.run(world, train_methods, str(model), layout, runs, *data, 3, 4)[0]
        for world, layout in ((1, {}), (2, {"tensor": 2, "sequence": "true"}))
    )
    for (cls, _), mine, theirs in zip(runs, found, expected, strict=True):
        worst = differences(mine, theirs)
        assert worst.pop("grad_norm") < 1e-4, cls
        assert max(worst.values()) < TOLERANCE, (cls, worst)
        assert mine[2]["loss"] != mine[0]["loss"]


@pytest.fixture
def command(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    make_model(model, seed=7)
    rows = [
        {"prompt": f"{a} plus {b}", "chosen": f"it is {b}", "rejected": a}
        for a in "abcd"
        for b in "ef"
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def command(out, *overrides):
        return [
            *(f"model.path={model}", "model.dtype=float32", "train.batch_size=4"),
            *(f"data.train=json@{tmp_path / 'rows.jsonl'}", "data.max_tokens=48"),
            *("optimizer.lr=1e-2", "output.tensorboard=false", f"output.dir={tmp_path / out}"),
            *overrides,
        ]

    return command


def test_commands_write_adapters_and_go_on_from_them(ranks, command, tmp_path):
    first = command("dpo", *LORA, "train.steps=3", "train.save_every=2")
    ranks.run(1, run_commands, [(schema.DPOConfig, first)])
    out = tmp_path / "dpo"
    assert not (out / "model").exists()
    tensors = read_tensors(out / "adapter")
    whole = (out / "adapter" / peft_config.WEIGHTS).read_bytes()
    shutil.rmtree(out / "checkpoints" / "step-00000003")
    shutil.rmtree(out / "adapter")
    second = command("second", f"lora.path={tmp_path / 'kept'}", "train.steps=1")
    ranks.run(1, run_commands, [(schema.DPOConfig, first)])
    assert (out / "adapter" / peft_config.WEIGHTS).read_bytes() == whole
    assert (out / "adapter" / base_print.FILE).is_file()
    shutil.copytree(out / "adapter", tmp_path / "kept")
    (summary,) = ranks.run(1, run_commands, [(schema.DPOConfig, second)])[0]
    assert summary["loss"] == pytest.approx(0.6931472, abs=1e-6)  # the reference has them too
    again = read_tensors(tmp_path / "second" / "adapter")
    assert again.keys() == tensors.keys()
    assert any(not torch.equal(again[name], tensors[name]) for name in tensors)
    paths = {"base": "model", "adapter": "kept", "output": "merged"}
    assert main(["merge-lora", *(f"--{k}={tmp_path / v}" for k, v in paths.items())]) == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["lora.alpha=8"], "lora.rank: is 0, though other settings"),
        (["lora.rank=4", "lora.path=somewhere"], "lora.path: its files say"),
        (["lora.rank=4", "lora.dropout=1"], "lora.dropout"),
        (["lora.rank=-1"], "lora.rank"),
        (["lora.rank=4", "lora.target_modules=[q_prj]"], "no linear q_prj"),
        (["lora.path=nowhere"], "adapter_config.json is missing"),
        (["lora.rank=4", "lora.base=nf4", "model.experts=grouped"], "model.experts: experts with"),
        (["lora.rank=4", "lora.double_quant=true"], "lora.double_quant: is of a base in 4 bits"),
    ],
)
def test_settings_that_do_not_fit_are_refused(command, settings, said):
    with pytest.raises(UserError) as refused:
        prepare(load(schema.DPOConfig, None, command("refused", "train.steps=1", *settings)), 1)
    assert said in str(refused.value)
