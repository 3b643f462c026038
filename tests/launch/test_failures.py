"""Which rank's last words are shown, and which nodes are refused."""

import json
import subprocess
import sys
from pathlib import Path

from tests.launch.scripts import LAUNCH, environment, program

AGENT = """
Root Cause (first observed failure):
[0]:
  time      : 2026-11-21_18:33:26
  host      : n2
  rank      : 3 (local_rank: 1)
  exitcode  : -9 (pid: 12345)
"""


def leave(folder: Path, rank: int, time: float, text: str) -> Path:
    """What a rank that failed leaves; its folder."""
    at = folder / f"node{rank // 2}" / "none_x" / "attempt_0" / str(rank % 2)
    at.mkdir(parents=True)
    record = {"message": {"message": text}, "time": time, "rank": rank, "node": f"n{rank // 2}"}
    (at / "error.json").write_text(json.dumps(record))
    return at


def shown(folder: Path) -> str:
    script = [sys.executable, str(LAUNCH / "first_failure.py"), str(folder)]
    return subprocess.run(script, capture_output=True, text=True, check=True).stdout


def test_the_earliest_failure_is_shown(tmp_path: Path):
    leave(tmp_path, 0, 20.5, "RuntimeError: connection closed by peer")
    at = leave(tmp_path, 2, 20.25, "Traceback ...\nValueError: the cause")
    (tmp_path / "node0" / "error.json").write_text("{}")  # somebody else's
    assert shown(tmp_path).startswith("rank 2 on n1 failed first\n")
    (at / "stderr.log").touch()
    first, *rest = shown(tmp_path).splitlines()
    assert first == f"rank 2 on n1 failed first; its log is {at}/stderr.log"
    assert rest == ["Traceback ...", "ValueError: the cause"]


def test_a_killed_rank_comes_before_those_that_lost_it(tmp_path: Path):
    at = leave(tmp_path, 3, 20.0, "RuntimeError: connection closed by peer")
    (at / "stderr.log").write_text("its last line\n")
    (tmp_path / "node1" / "torchrun.log").write_text(AGENT)
    lines = shown(tmp_path).splitlines()
    assert lines[0] == "its last line"
    assert lines[-1].startswith("rank 3 failed first: killed by signal 9")


def test_an_aborted_rank_comes_after_the_one_that_it_lost(tmp_path: Path):
    leave(tmp_path, 0, 20.0, "ValueError: the cause")
    (tmp_path / "torchrun.log").write_text(AGENT.replace("-9", "-6"))  # NCCL's watchdog
    assert shown(tmp_path).splitlines()[-1] == "ValueError: the cause"


def test_without_a_record_the_end_of_a_log_is_shown(tmp_path: Path):
    assert "no rank left a word" in shown(tmp_path)
    (tmp_path / "stderr.log").write_text("one\ntwo\n")
    assert shown(tmp_path).splitlines()[-2:] == ["one", "two"]


def check(folder: Path, address: str = "127.0.0.1", **variables: str):
    """check_node.py with the programs in `folder`."""
    script = [sys.executable, str(LAUNCH / "check_node.py"), "--shared", str(folder), address]
    env = environment(folder, SLURMD_NODENAME="n7", PYTHONPATH=str(LAUNCH.parent)) | variables
    return subprocess.run(script, capture_output=True, text=True, env=env)


def test_a_fit_node_says_what_all_must_agree_on(tmp_path: Path):
    done = check(tmp_path)
    assert done.returncode == 0, done.stderr
    number, node, agreed = done.stdout.strip().split("\t")
    assert number == "0"
    assert node.startswith("n7 (127.0.0.1): ")
    assert f"Python {sys.version.split()[0]}, torch 2" in agreed


def test_a_gpu_that_hangs_is_not_waited_for(tmp_path: Path):
    program(tmp_path / "nvidia-smi", "exec sleep 60\n")
    code = "import check_node as c; c.HANGS_AFTER_S = 0.2; print(c.check_gpus())"
    env = environment(tmp_path, PYTHONPATH=str(LAUNCH))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=30
    )
    assert "a GPU hangs: nvidia-smi has not answered in 0.2 s" in done.stdout


def test_an_unfit_node_says_all_that_is_wrong(tmp_path: Path):
    program(tmp_path / "nvidia-smi", "printf '0, 3, 0\\n1, 40960, [N/A]\\n2, 3, 4\\n'")
    done = check(tmp_path / "none", "192.0.2.1", SLURM_GPUS_ON_NODE="4")
    assert done.returncode == 1
    for part in (
        "node n7: its address 192.0.2.1 is not its own",
        f"node n7: does not see {tmp_path}/none",
    ):
        assert part in done.stderr
    done = check(tmp_path, SLURM_GPUS_ON_NODE="4")
    assert done.returncode == 1
    for part in (
        "GPU 1 has 40960 MiB in use by another process",
        "GPU 2 has 4 uncorrected memory errors",
        "has 3 GPUs in order, the job was given 4",
    ):
        assert f"node n7: {part}" in done.stderr
