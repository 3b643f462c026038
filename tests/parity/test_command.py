"""The command itself: a run to its end, one that is killed, and one whose ranks fail."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megarlhf import cli
from megarlhf.errors import UserError
from megarlhf.parallel.pool import RankFailure


def start(*arguments):
    command = [sys.executable, "-m", "megarlhf", "parity", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_run_to_its_end(models, tmp_path):
    file = tmp_path / "parity.json"
    process = start("--model", models[True], "--layouts", "cp2", "--steps", 2, "--json", file)
    out, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (0, "")
    header, one, cp2, last = out.splitlines()
    assert header.split()[:3] == ["layout", "ranks", "logits"]
    assert (one.split()[0], cp2.split()[0]) == ("tp1", "cp2")
    assert "ok" in cp2.split()
    assert last.startswith("2 layouts in")
    assert json.loads(file.read_text())["ok"] is True


def test_a_killed_run_leaves_no_process(models):
    process = start("--model", models[True], "--layouts", "dp2", "cp2", "--steps", 20)
    children = []
    try:
        for line in process.stdout:
            children = child_processes(process.pid)
            if line.startswith("tp1"):
                break
        assert len(children) >= 2  # the ranks
    finally:
        process.kill()
        process.communicate(timeout=30)
    until = time.monotonic() + 20
    while any(map(running, children)) and time.monotonic() < until:
        time.sleep(0.1)
    assert [pid for pid in children if running(pid)] == []


def child_processes(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pid):
    """Whether there is such a process, other than one that only waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class BrokenRanks:
    """A pool whose ranks fail once there are two of them."""

    def __init__(self, pool, cause=None):
        self.pool, self.cause = pool, cause

    def start(self, world):
        self.pool.start(1)

    def run(self, world, *arguments):
        if world > 1:
            raise RankFailure("rank 1: the process died (exit code -9)") from self.cause
        return self.pool.run(world, *arguments)


def test_a_dead_rank_ends_the_run_with_what_was_measured(ranks, parity, tmp_path, capsys):
    status, rows, table = parity("tp2", "cp2", pool=BrokenRanks(ranks))
    assert status == 3
    assert list(rows) == ["tp1"]
    assert table.splitlines()[-1].split() == ["tp2", "FAILED"]
    assert "layout tp2: rank 1: the process died" in capsys.readouterr().err
    content = json.loads((tmp_path / "parity.json").read_text())
    assert content["ok"] is False
    assert content["failure"].startswith("layout tp2: rank 1: the process died")


def test_a_users_error_on_a_rank_is_the_users_error(ranks, parity):
    with pytest.raises(RankFailure) as failure:
        parity("tp2", pool=BrokenRanks(ranks, UserError("the tensor x is missing")))
    assert str(cli._user_error_behind(failure.value)) == "the tensor x is missing"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--steps", "0"],
        ["--max-ranks", "-1"],
        ["--dtype", "float16"],
        ["--tolerance", "nan"],  # nothing is greater: every layout would be right
        ["--timeout", "0"],
        [],
    ],
    ids=["steps", "ranks", "dtype", "tolerance", "timeout", "no-model"],
)
def test_bad_options_are_refused(arguments, capsys):
    model = ["--model", os.devnull] if arguments else []
    with pytest.raises(SystemExit) as exit_:
        cli.main(["parity", *model, *arguments])
    assert exit_.value.code == 2


def test_a_bad_layout_is_status_2(models, capsys):
    assert cli.main(["parity", "--model", str(models[False]), "--layouts", "tp3"]) == 2
    assert "nearest that it can: tp4, tp2" in capsys.readouterr().err
