"""The tool on real ranks: layouts that are right pass, planted faults are caught and named."""

import dataclasses
import json
import math

import pytest

from megarlhf.errors import UserError
from megarlhf.parity.auxiliary import RoutingLosses
from megarlhf.parity.thresholds import Thresholds
from megarlhf.parity.tool import Settings, run_parity
from tests.models.tiny import CONFIG
from tests.parity import faults


def assert_measured(row, *, steps):
    """Every error is a number, small and not all of them zero by accident."""
    assert row["ok"]
    assert row["problems"] == []
    assert 0 < row["logits"] < 1e-5
    assert 0 <= row["gradient"] < 2e-6 or row["layout"] == "tp1"
    assert math.isfinite(row["grad_norm"])
    assert len(row["losses"]) == steps
    assert row["outputs"].keys() >= {"model.embed_tokens", "model.layers.3.mlp", "lm_head"}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_layouts_pass(parity, tied):
    status, rows, table = parity("tp2.sp.pp2", "pp2.vpp2", "cp2.dp2", tied=tied, steps=3)
    assert status == 0
    assert list(rows) == ["tp1", "tp2.sp.pp2", "pp2.vpp2", "cp2.dp2"]
    for row in rows.values():
        assert_measured(row, steps=3)
        assert row["losses"][-1] < row["losses"][0]
        assert row["steps"] < 2e-5
    assert len(table.splitlines()) == 6
    assert "OFF" not in table
    assert "all compute the same function" in table.splitlines()[-1]


def test_a_mixture_of_experts_passes(ranks, tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM, set_seed

    set_seed(0)
    settings = {name: value for name, value in CONFIG.items() if name != "rms_norm_eps"}
    model = MixtralForCausalLM(
        MixtralConfig(**{**settings, "num_hidden_layers": 2}, num_local_experts=4)
    )
    model.save_pretrained(tmp_path)
    table = []
    asked = Settings(tmp_path, ("ep2.cp2.tp2.sp",), steps=2, routing=RoutingLosses(0.1, 0.01))
    assert run_parity(asked, pool=ranks, write=table.append) == 0, "".join(table)


def test_float64_is_far_closer_and_makes_no_steps(parity):
    status, rows, _ = parity("tp2.sp.cp2", dtype="float64", steps=3)
    assert status == 0
    row = rows["tp2.sp.cp2"]
    assert row["steps"] is None
    assert 0 < row["gradient"] < 1e-13  # seen: 3e-15
    assert row["grad_norm_error"] < 1e-13
    assert row["outputs"]["lm_head"] < 1e-13
    assert row["grad_norm"] == pytest.approx(rows["tp1"]["grad_norm"], rel=1e-12)


def test_bfloat16_has_wider_thresholds(parity):
    status, rows, _ = parity("tp2", dtype="bfloat16", steps=3)
    assert status == 0
    assert 1e-4 < rows["tp2"]["gradient"] < 1e-1


def problems_of(parity, layout, setup, **settings):
    """What is said of a layout with a fault, and its row."""
    status, rows, table = parity(layout, setup=setup, **settings)
    assert status == 1
    assert rows["tp1"]["ok"]
    assert "OFF" in table
    assert table.splitlines()[-1].endswith(f"1 OFF: {layout}")
    problems = rows[layout]["problems"]
    assert all(problem in table for problem in problems)
    return problems, rows[layout]


def test_a_norm_without_the_sequence_parallel_mark_is_caught(parity):
    problems, row = problems_of(parity, "tp2.sp", faults.no_sequence_parallel_mark)
    assert "ranks disagree on the gradient of" in problems[0]
    assert "norm.weight" in problems[0]
    assert "norm.weight is off" in problems[1]
    assert row["gradient"] > 1e-2
    assert max(row["outputs"].values()) < 1e-5


def test_a_contiguous_cut_is_caught_at_the_first_attention(parity):
    problems, row = problems_of(parity, "cp2", faults.contiguous_cut)
    assert "the first module that differs is model.layers.0.self_attn" in problems[0]
    assert row["outputs"]["model.embed_tokens"] == 0
    assert row["logits"] > 1e-2


def test_a_local_denominator_is_caught(parity):
    problems, row = problems_of(parity, "dp2", faults.local_denominator)
    assert "the loss differs from one rank by" in problems[0]
    assert any("the gradient of" in problem for problem in problems)
    assert max(row["outputs"].values()) < 1e-5


def test_a_missing_tensor_parallel_mark_is_caught_by_the_norm_alone(parity):
    problems, row = problems_of(parity, "tp2", faults.no_tensor_parallel_mark)
    (problem,) = problems
    assert "the gradient norm" in problem
    assert "though every gradient is right" in problem
    assert row["gradient"] < 2e-6


def test_tied_embeddings_that_are_not_summed_are_caught(parity):
    problems, _ = problems_of(parity, "pp2", faults.untied_copies, tied=True)
    assert "ranks disagree on the gradient of model.embed_tokens.weight" in problems[0]


def test_later_steps_are_compared_too(parity):
    """A threshold of nothing: rounding itself is then too much, and every kind of it is named."""
    status, rows, _ = parity("tp2.sp", steps=8, tolerance=0.0)
    assert status == 1
    said = " ".join(rows["tp2.sp"]["problems"])
    for part in ("first module that differs", "the gradient of", "losses of later optimizer steps"):
        assert part in said


def test_a_wrong_layout_is_refused_before_anything_starts(parity):
    with pytest.raises(UserError, match="layout tp3: tp must divide"):
        parity("tp2", "tp3", pool=None)


def test_losses_of_routers_that_are_not_there_are_refused(models):
    with pytest.raises(UserError, match="--z-loss: the model has no experts"):
        run_parity(Settings(models[False], routing=RoutingLosses(z=0.1)))
    with pytest.raises(UserError, match="--aux-loss: must be at least 0, got -1"):
        run_parity(Settings(models[False], routing=RoutingLosses(balance=-1)))


def test_a_directory_without_weights_is_refused(models, tmp_path):
    (tmp_path / "config.json").write_bytes((models[False] / "config.json").read_bytes())
    with pytest.raises(UserError, match="no safetensors files"):
        run_parity(Settings(tmp_path))


def test_a_json_file_that_cannot_be_written_is_refused(models, tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*: No such file or directory"):
        run_parity(Settings(models[False], json=tmp_path / "missing" / "parity.json"))


def test_thresholds_are_scaled_and_wider_for_experts():
    plain = Thresholds.of("float32", {})
    assert plain.gradients == 2e-6
    assert Thresholds.of("float32", {"num_experts": 8}).gradients == 5e-6
    doubled = dataclasses.asdict(Thresholds.of("float32", {}, 2.0))
    assert doubled == {k: 2 * v for k, v in dataclasses.asdict(plain).items()}


def test_the_json_says_what_was_asked_and_what_counts(parity, tmp_path):
    parity(max_ranks=1)
    content = json.loads((tmp_path / "parity.json").read_text())
    assert content["dtype"] == "float32"
    assert content["ok"] is True
    assert content["failure"] is None
    assert content["thresholds"]["gradients"] == 2e-6
    assert [row["layout"] for row in content["layouts"]] == ["tp1"]
