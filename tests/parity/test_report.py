"""Errors and the table, without ranks."""

import math

import pytest
import torch

from megarlhf.parity.compare import Comparison, error_of
from megarlhf.parity.report import Table, summary

NAN = float("nan")


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 1e-30], [0.0, 0.0], math.inf),
        ([NAN, 4.0], [1.0, 4.0], math.inf),
        ([1.0], [1.0, 4.0], math.inf),
    ],
)
def test_an_error_is_relative_to_the_largest_and_never_hides_a_nan(found, expected, error):
    assert error_of(torch.tensor(found), torch.tensor(expected)) == error


def row(layout, **values):
    defaults = {
        "ranks": 2,
        "logits": 1.24e-7,
        "loss": 5.0,
        "loss_error": 0.0,
        "gradient": 3e-7,
        "gradient_name": "model.layers.0.mlp.up_proj.weight",
        "copies": 0.0,
        "copies_name": "",
        "grad_norm": 1.0,
        "grad_norm_error": 2.7e-11,
        "steps": None,
        "losses": [5.0],
        "outputs": {},
        "seconds": 1.25,
    }
    return Comparison(layout, **{**defaults, **values})


def test_the_table_grows_line_by_line():
    text = []
    table = Table(["tp2", "tp2.sp.pp2.cp2"], text.append)
    table.start("tp2")
    assert "".join(text).splitlines()[-1].strip() == "tp2"
    table.finish(row("tp2"))
    off = row("tp2.sp.pp2.cp2", gradient=math.inf, problems=["a is off", "b is off"])
    table.start(off.layout)
    table.finish(off)
    header, good, bad, *problems = "".join(text).splitlines()
    assert good.split() == (
        ["tp2", "2", "1.2e-7", "0", "3.0e-7", "3e-11", "-", "ok", "1.2", "layers.0.mlp.up_proj"]
    )
    assert good.index("layers.0") == header.index("worst gradient")
    assert "OFF" in bad
    assert "inf" in bad
    assert [problem.strip() for problem in problems] == ["a is off", "b is off"]


def test_the_last_line_names_what_is_off():
    assert summary([row("tp2")], 3.0) == "1 layouts in 3 s, all compute the same function"
    rows = [row("tp2"), row("cp2", problems=["x"])]
    assert summary(rows, 3.0) == "2 layouts in 3 s, 1 OFF: cp2"
