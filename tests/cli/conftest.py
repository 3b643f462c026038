"""The command line in this process, where nothing may be started."""

import re

import pytest

from megarlhf.cli import main
from tests.trainer.tiny_run import ROWS, write_rows, write_run


class Started(Exception):
    """The command went as far as to start something."""


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch):
    import subprocess

    import ray
    import torch.distributed

    def start(*args, **kwargs):
        raise Started

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(torch.distributed, "init_process_group", start)
    monkeypatch.setattr(subprocess, "Popen", start)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def commands(tmp_path) -> dict[str, list[str]]:
    """Commands with which nothing is wrong, by name."""
    rl = write_run(tmp_path)
    rows = [{"input": row["prompt"], "output": str(row["answer"])} for row in ROWS]
    sft = [
        next(override for override in rl if override.startswith("model.path=")),
        f"data.train={write_rows(tmp_path / 'sft.jsonl', rows)}",
        "data.max_tokens=16",
        f"output.dir={tmp_path / 'out'}",
    ]
    return {"rl": ["rl", *rl], "sft": ["sft", *sft]}


@pytest.fixture
def refusal(commands, capsys):
    """Runs a right command, changed for the worse, and returns what it says of it."""

    def refusal(*overrides: str, command: str = "rl") -> str:
        assert main([*commands[command], *overrides]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        form = r"megarlhf: error: \S.*: .*\n  -> \S.*\n"  # where, what, what to do; no traceback
        assert re.fullmatch(form, printed.err), printed.err
        return printed.err

    return refusal
