"""A checkpoint of somebody else's runs nothing here."""

import os
import pickle

import pytest
import torch

from tests.checkpoint_convert.damage import refusal
from tests.malicious import Malicious
from tools.checkpoint_convert.cli import main


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
