"""torchrun.sh and iterate.sh: what they would run, their errors, signals; and what all scripts share.

Real runs by torchrun.sh are in end_to_end/, such as test_sft.py and test_two_hosts.py.
"""

import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.processes import processes_with
from tests.launch.scripts import LAUNCH, command_lines, environment, program, run

TORCHRUN = LAUNCH / "torchrun.sh"
ITERATE = LAUNCH / "iterate.sh"
LOGGING = "--redirects=3 --tee=0:1 --role= --signals-to-handle=SIGQUIT --shutdown-timeout=5 "
PREFIX = "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE='$role_name'"


def planned(output: str) -> list[list[str]]:
    """`command_lines` with LOGS for the folder of a start, which has the time in its name."""
    return command_lines(re.sub(r"[^ =]*/\d{8}-\d{6}-node\d+", "LOGS", output))


# --- torchrun.sh ------------------------------------------------------------------------------


def test_torchrun_dry_run_on_one_node():
    options = ["--nproc", "2", "--dry-run"]
    done = run(TORCHRUN, *options, "--", "sft", "--config", "a b.yaml", "x=[1, 2]")
    assert done.returncode == 0, done.stderr
    assert planned(done.stdout) == command_lines(
        f"OMP_NUM_THREADS=1 MEGARLHF_STOP_FILE=LOGS/stop {PREFIX} {sys.executable} "
        "-m torch.distributed.run "
        f"--nproc-per-node=2 --standalone --local-addr=127.0.0.1 --log-dir=LOGS {LOGGING}"
        "-m megarlhf sft --config 'a b.yaml' 'x=[1, 2]'"
    )
    assert f"--log-dir={Path.cwd()}/megarlhf-logs/" in done.stdout
    seen = environment(CUDA_VISIBLE_DEVICES="2,5,6")
    assert "--nproc-per-node=3 " in run(TORCHRUN, "--dry-run", "--", "sft", env=seen).stdout
    done = run(TORCHRUN, "--dry-run", "--", "sft", "output.dir=OUT")
    assert f"--log-dir={Path.cwd()}/OUT/logs/" in done.stdout


def test_torchrun_dry_run_on_two_nodes():
    options = "--nproc 8 --nnodes 2 --node-rank 1 --master-addr 10.0.0.7 --master-port 3000"
    words = shlex.split(options + " --log-dir logs --dry-run -- dpo")
    outer = {"MEGARLHF_STOP_FILE": "/of/the/job"}
    done = run(TORCHRUN, *words, env=environment(OMP_NUM_THREADS="4") | outer)
    assert done.returncode == 0, done.stderr
    assert planned(done.stdout) == command_lines(
        f"OMP_NUM_THREADS=4 MEGARLHF_STOP_FILE=/of/the/job {PREFIX} {sys.executable} "
        "-m torch.distributed.run "
        "--nproc-per-node=8 --nnodes=2 --node-rank=1 --master-addr=10.0.0.7 --master-port=3000 "
        f"--log-dir=LOGS {LOGGING}-m megarlhf dpo"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no megarlhf command"),
        ("--nproc", "--nproc needs a value"),
        ("--nproc 0 -- sft", "--nproc takes a whole number from 1 to 1024, not '0'"),
        ("--nproc two -- sft", "not 'two'"),
        ("--procs 2 -- sft", "unknown option '--procs'"),
        ("sft --config x", "'sft' stands before '--'"),
        ("--nnodes 2 --master-addr h -- sft", "needs --node-rank"),
        ("--nnodes 2 --node-rank 0 -- sft", "needs --master-addr"),
        ("--nnodes 2 --node-rank 2 --master-addr h -- sft", "from 0 to 1, not '2'"),
        ("--master-port 3000 -- sft", "belong to --nnodes above 1"),
    ],
)
def test_torchrun_names_what_is_wrong(line: str, message: str):
    done = run(TORCHRUN, *line.split())
    assert done.returncode == 2
    assert message in done.stderr
    assert "usage: launch/torchrun.sh" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "name", ["torchrun.sh", "slurm.sbatch", "submit.sh", "ray.sh", "iterate.sh"]
)
def test_help(name: str):
    done = run(LAUNCH / name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")
    assert done.stderr == ""


def test_no_such_python():
    done = run(TORCHRUN, "--nproc", "1", "--", "sft", env=environment(PYTHON="/none/python"))
    assert done.returncode == 1
    assert "no Python at '/none/python'" in done.stderr


# A Python in which torchrun is ready and ...
READY = f"""
[[ $* == *torch.distributed.run* ]] || exec {sys.executable} "$@"
echo ready
"""
# ... waits for the file that asks it to stop, and answers in it.
STOPS = """
until [[ -e $MEGARLHF_STOP_FILE ]]; do sleep 0.1; done
sleep 0.5
echo 7 >"$MEGARLHF_STOP_FILE"
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_torchrun_asks_the_run_to_stop_and_waits(tmp_path: Path, sent: signal.Signals):
    python = program(tmp_path / "python", READY + STOPS)
    script = start_torchrun(tmp_path, python)
    script.send_signal(sent)
    _, errors = script.communicate(timeout=30)
    assert script.returncode == 130, errors
    assert "stopped after step 7, and saved" in errors


def test_torchrun_ends_at_once_on_a_second_interrupt(tmp_path: Path):
    python = program(tmp_path / "python", READY + "exec sleep 60\n")
    script = start_torchrun(tmp_path, python)
    script.send_signal(signal.SIGINT)
    line = ""
    while "will save and stop" not in line:
        line = script.stderr.readline()
        assert line, "the script ended at the first interrupt"
    # Until the first one is dealt with, the shell takes another one for the same.
    for _ in range(30):
        script.send_signal(signal.SIGINT)
        try:
            script.communicate(timeout=1)
            break
        except subprocess.TimeoutExpired:
            pass
    assert script.returncode == 128 + signal.SIGQUIT


def test_nothing_is_left_of_a_torchrun_that_was_killed(tmp_path: Path):
    mark = f"{tmp_path}/orphan"  # in a session of its own, as torchrun's ranks are
    orphan = f"setsid bash -c 'echo ready; while :; do sleep 0.1; done' {mark} &\nsleep 0.5\n"
    python = program(tmp_path / "python", READY.replace("echo ready", "") + orphan + "kill -9 $$\n")
    script = start_torchrun(tmp_path, python)
    assert processes_with(mark)
    script.communicate(timeout=30)
    assert script.returncode == 128 + signal.SIGKILL
    assert processes_with(mark) == {}


def test_two_runs_at_once_have_folders_of_their_own(tmp_path: Path):
    python = program(tmp_path / "python", READY + STOPS)
    runs = [start_torchrun(tmp_path, python) for _ in range(2)]
    runs[0].send_signal(signal.SIGTERM)
    runs[0].communicate(timeout=30)
    assert (runs[0].returncode, runs[1].poll()) == (130, None)
    runs[1].send_signal(signal.SIGTERM)
    runs[1].communicate(timeout=30)
    assert len(list(tmp_path.glob("logs/*"))) == 2


def start_torchrun(folder: Path, python: Path) -> subprocess.Popen:
    """The script with a stand-in for Python, once that is ready."""
    words = ["--nproc", "1", "--", "sft", f"output.dir={folder}"]
    return start(TORCHRUN, *words, PYTHON=str(python))


def start(script: Path, *words: str, **variables: str) -> subprocess.Popen:
    """A script, once what it runs is ready."""
    # A shell cannot catch what was ignored before it began, as it is behind nohup and in the background.
    signals = ("env", "--default-signal=INT,HUP,QUIT")
    process = subprocess.Popen(
        [*signals, "bash", str(script), *words],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


# --- all --------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck():
    scripts = [str(file) for file in sorted(LAUNCH.iterdir()) if file.suffix in {".sh", ".sbatch"}]
    scripts.append(str(LAUNCH.parent / ".ci/run"))
    done = subprocess.run(["shellcheck", "-x", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# --- iterate.sh -------------------------------------------------------------------------------


def test_iterate_dry_run():
    options = ["--model", "M", "--out", "O", "--rounds", "2", "--nproc", "2", "--dry-run"]
    settings = ["--generate", "g.yaml", "--generate", "a=[1,\n2]", "--train", "b=c"]
    done = run(ITERATE, "dpo", *options, *settings)
    assert done.returncode == 0, done.stderr
    expected = ""
    for number, model in ((1, "M"), (2, "O/round-1/train/model")):
        at = f"O/round-{number}"
        expected += (
            f"{sys.executable} -m megarlhf generate --config g.yaml $'a=[1,\\n2]' "
            f"model.path={model} train.seed={number} output.dir={at}/generate\n"
            f"{LAUNCH}/torchrun.sh --nproc 2 -- dpo b=c model.path={model} "
            f"data.train=json@{at}/generate/pairs.jsonl output.dir={at}/train\n"
        )
    assert command_lines(done.stdout) == command_lines(expected)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_iterate_passes_signals_on(tmp_path: Path, sent: signal.Signals):
    stops = "trap 'echo got it; exit 130' TERM INT; echo ready; while :; do sleep 0.1; done"
    python = program(tmp_path / "python", stops)
    words = ["--model", "M", "--out", str(tmp_path / "out")]
    script = start(ITERATE, "sft", *words, PYTHON=str(python))
    script.send_signal(sent)
    printed, _ = script.communicate(timeout=30)
    assert (script.returncode, printed) == (130, "got it\n")
    assert not list(tmp_path.rglob("done"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kto", "--model", "M", "--out", "O"], "METHOD must be sft or dpo, not 'kto'"),
        (["sft", "--out", "O"], "--model is missing"),
        (["sft", "--model", "M", "--out", "O", "--rounds", "0"], "whole number from 1"),
        (["sft", "dpo"], "'dpo' is one word too many"),
        (["sft", "--nproc", "all"], "--nproc takes a whole number from 1 to 1024"),
        (["sft", "--generate"], "--generate needs a value"),
    ],
)
def test_iterate_refuses(words, message):
    done = run(ITERATE, *words)
    assert done.returncode == 2
    assert message in done.stderr
