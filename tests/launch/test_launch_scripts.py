"""The launch scripts: the commands they would run, their errors, and real runs on this machine."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
TORCHRUN = LAUNCH / "torchrun.sh"
SLURM = LAUNCH / "slurm.sbatch"
ITERATE = LAUNCH / "iterate.sh"


def environment(path: Path | None = None, **extra: str) -> dict[str, str]:
    """This process's environment without Slurm's and Ray's variables; `path` goes before PATH."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RAY_", "OMP_"))}
    if path is not None:
        kept["PATH"] = f"{path}:{kept['PATH']}"
    return kept | {"PYTHON": sys.executable} | extra


def run(script: Path, *words: str, env: dict[str, str] | None = None, cwd: Path | None = None):
    """The finished script, its output captured as text."""
    command = ["bash", str(script), *words]
    return subprocess.run(
        command, env=env or environment(), cwd=cwd, capture_output=True, text=True, timeout=200
    )


def command_lines(output: str) -> list[list[str]]:
    """The words of each line, as a shell reads them."""
    return [shlex.split(line) for line in output.splitlines()]


def program(path: Path, text: str) -> Path:
    """Writes an executable shell script."""
    path.write_text("#!/usr/bin/env bash\n" + text)
    path.chmod(0o755)
    return path


# --- torchrun.sh ------------------------------------------------------------------------------


def test_torchrun_dry_run_on_one_node():
    options = ["--nproc", "2", "--dry-run"]
    done = run(TORCHRUN, *options, "--", "sft", "--config", "a b.yaml", "x=[1, 2]")
    assert done.returncode == 0, done.stderr
    assert command_lines(done.stdout) == command_lines(
        f"OMP_NUM_THREADS=1 {sys.executable} -m torch.distributed.run --nproc-per-node=2 "
        "--standalone --local-addr=127.0.0.1 -m megarlhf sft --config 'a b.yaml' 'x=[1, 2]'"
    )


def test_torchrun_dry_run_on_two_nodes():
    options = (
        "--nproc 8 --nnodes 2 --node-rank 1 --master-addr h0 --master-port 3000 --log-dir logs"
    )
    words = shlex.split(options + " --dry-run -- dpo")
    done = run(TORCHRUN, *words, env=environment(OMP_NUM_THREADS="4"))
    assert done.returncode == 0, done.stderr
    assert command_lines(done.stdout) == command_lines(
        f"OMP_NUM_THREADS=4 {sys.executable} -m torch.distributed.run --nproc-per-node=8 "
        "--nnodes=2 --node-rank=1 --master-addr=h0 --master-port=3000 --log-dir=logs --redirects=3 "
        "--tee=0:3 -m megarlhf dpo"
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


@pytest.mark.parametrize("script", [TORCHRUN, SLURM])
def test_help(script: Path):
    done = run(script, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")
    assert done.stderr == ""


def test_no_such_python():
    done = run(TORCHRUN, "--nproc", "1", "--", "sft", env=environment(PYTHON="/none/python"))
    assert done.returncode == 1
    assert "no Python at '/none/python'" in done.stderr


@pytest.mark.slow
def test_torchrun_runs_two_processes(tmp_path: Path):
    logs = tmp_path / "logs"
    done = run(TORCHRUN, "--nproc", "2", "--log-dir", str(logs), "--", "--version", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"logs of each rank: {logs}/" in done.stderr
    printed = [file.read_text() for file in sorted(logs.glob("*/attempt_*/*/stdout.log"))]
    assert len(printed) == 2
    assert printed[0] == printed[1]
    assert printed[0].strip()


@pytest.mark.slow
def test_torchrun_returns_the_failure(tmp_path: Path):
    done = run(TORCHRUN, "--nproc", "2", "--", "no-such-command", cwd=tmp_path)
    assert done.returncode == 1
    assert "no-such-command" in done.stderr


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_torchrun_passes_signals_on_and_waits(tmp_path: Path, sent: signal.Signals):
    # An interpreter that is slow to end, so that a script that does not wait is caught.
    python = program(
        tmp_path / "python",
        "trap 'sleep 1; echo ended; exit 9' TERM\necho ready\nwhile :; do sleep 0.1; done\n",
    )
    script = subprocess.Popen(
        ["bash", str(TORCHRUN), "--nproc", "1", "--", "sft"],
        env=environment(PYTHON=str(python)),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert script.stdout.readline() == "ready\n"
    script.send_signal(sent)
    output, _ = script.communicate(timeout=30)
    assert (output, script.returncode) == ("ended\n", 9)


# --- slurm.sbatch -----------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.touch()
    return file


@pytest.fixture
def fake_slurm(tmp_path: Path) -> Path:
    """A folder with stand-ins: n1 and n2 are this machine, and srun runs the command here."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program(
        folder / "scontrol",
        'case "$*" in\n'
        "'show hostnames n[1-2]') printf 'n1\\nn2\\n' ;;\n"
        '"show node n"?) echo "   NodeAddr=127.0.0.1${3#n} NodeHostName=h Version=22" ;;\n'
        "*) exit 1 ;;\nesac\n",
    )
    program(
        folder / "srun",
        "while [[ $1 == --* ]]; do\n"
        '[[ $1 != --output=* ]] || exec >"${1#--output=}" 2>&1\nshift\ndone\nexec "$@"\n',
    )
    program(folder / "getent", "exit 2\n")  # no such name
    return folder


def test_slurm_dry_run(config: Path, fake_slurm: Path):
    done = run(
        SLURM,
        *("--config", str(config), "a.b=[1, 2]", "--dry-run", "--wait", "60", "--", "--more"),
        env=environment(fake_slurm, SLURM_JOB_ID="5003", SLURM_JOB_NODELIST="n[1-2]"),
    )
    assert done.returncode == 0, done.stderr
    lines = command_lines(done.stdout)
    assert lines[0][:3] == ["export", "RAY_ADDRESS=127.0.0.11:20006", "RAY_AUTH_MODE=token"]
    assert lines[1] == ["mkdir", "-p", "slurm-5003-ray"]
    head, worker = lines[2:4]
    for node, (line, address) in enumerate(((head, "127.0.0.11"), (worker, "127.0.0.12")), start=1):
        assert line[0] == "srun"
        assert line[-1] == "&"
        assert {f"--nodelist=n{node}", f"--node-ip-address={address}"} <= set(line)
        assert f"--output=slurm-5003-ray/n{node}.log" in line
    assert {"--head", "--port=20006", "--temp-dir=/tmp/ray-5003"} <= set(head)
    assert "--head" not in worker
    assert "--address=127.0.0.11:20006" in worker
    assert lines[4][-2:] == ["2", "60"]  # wait for 2 nodes, 60 s
    megarlhf = [sys.executable, "-m", "megarlhf", "rl", "--config", str(config)]
    assert lines[5:] == [[*megarlhf, "a.b=[1, 2]", "--more"]]


def without_slurm(tmp_path: Path) -> Path:
    """A PATH without scontrol, whatever this machine has."""
    folder = tmp_path / "few"
    folder.mkdir()
    for name in ("bash", "awk", "cat", "dirname", "getent", "od", "sed", "tr"):
        (folder / name).symlink_to(shutil.which(name))
    return folder


def test_slurm_dry_run_without_scontrol(config: Path, tmp_path: Path):
    variables = environment(SLURM_JOB_ID="7") | {"PATH": str(without_slurm(tmp_path))}
    words = ["--config", str(config), "--dry-run"]
    done = run(SLURM, *words, env=variables | {"SLURM_JOB_NODELIST": "x1.invalid,x2.invalid"})
    assert done.returncode == 0, done.stderr
    assert "--node-ip-address=x2.invalid" in done.stdout
    done = run(SLURM, *words, env=variables | {"SLURM_JOB_NODELIST": "x[1-2]"})
    assert done.returncode == 1
    assert "cannot expand the node list 'x[1-2]' without scontrol" in done.stderr


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("", 2, "--config is needed"),
        ("--config", 2, "--config needs a value"),
        ("--config {} --nodes 2", 2, "unknown option '--nodes'"),
        ("--config {} lr", 2, "'lr' is neither an option nor an override"),
        ("--config {} --port 80", 2, "--port takes a whole number from 1024"),
        ("--config none.yaml", 1, "no file 'none.yaml'"),
        ("--config {}", 1, "not inside a Slurm job"),
    ],
)
def test_slurm_names_what_is_wrong(config: Path, line: str, code: int, message: str):
    done = run(SLURM, *line.format(config).split())
    assert done.returncode == code
    assert message in done.stderr
    assert ("usage: sbatch" in done.stderr) == (code == 2)


DRIVER = """
import ray
ray.init(log_to_driver=False, logging_level="ERROR")
print(sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]))
raise SystemExit(7)
"""


def processes_with(text: str) -> list[str]:
    """The command lines of running processes that have `text` in them (zombies have none)."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        if text in line:
            found.append(line)
    return found


@pytest.mark.slow
def test_slurm_brings_ray_up_and_down(config: Path, fake_slurm: Path, tmp_path: Path):
    job = str(10**6 + os.getpid())
    folder = Path(f"/tmp/ray-{job}")
    # A real Ray, but a small driver instead of `megarlhf rl`.
    python = program(
        tmp_path / "python",
        f'real={sys.executable}\n[[ "$1 $2" != "-m megarlhf" ]] || exec "$real" -c \'{DRIVER}\'\n'
        'exec "$real" "$@"\n',
    )
    variables = environment(
        fake_slurm,
        PYTHON=str(python),
        SLURM_JOB_ID=job,
        SLURM_JOB_NODELIST="n[1-2]",
        RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="0",
    )
    try:
        done = run(SLURM, "--config", str(config), "--wait", "90", env=variables, cwd=tmp_path)
        logs = "".join(file.read_text() for file in tmp_path.glob("slurm-*-ray/*.log"))
        assert done.returncode == 7, done.stderr + logs
        assert done.stdout.splitlines() == ["['127.0.0.11', '127.0.0.12']"]
        deadline = time.monotonic() + 20
        while left := processes_with(str(folder)):
            assert time.monotonic() < deadline, left
            time.sleep(0.2)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- both -------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck():
    scripts = [str(file) for file in sorted(LAUNCH.iterdir()) if file.suffix in {".sh", ".sbatch"}]
    scripts.append(str(LAUNCH.parent / ".ci/run"))
    done = subprocess.run(["shellcheck", "-x", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# --- iterate.sh -------------------------------------------------------------------------------


def test_iterate_dry_run():
    options = ["--model", "M", "--out", "O", "--rounds", "2", "--nproc", "2", "--dry-run"]
    settings = ["--generate", "g.yaml", "--generate", "a=[1, 2]", "--train", "b=c"]
    done = run(ITERATE, "dpo", *options, *settings)
    assert done.returncode == 0, done.stderr
    expected = ""
    for number, model in ((1, "M"), (2, "O/round-1/train/model")):
        at = f"O/round-{number}"
        expected += (
            f"{sys.executable} -m megarlhf generate --config g.yaml 'a=[1, 2]' "
            f"model.path={model} train.seed={number} output.dir={at}/generate\n"
            f"{LAUNCH}/torchrun.sh --nproc 2 -- dpo b=c model.path={model} "
            f"data.train=json@{at}/generate/pairs.jsonl output.dir={at}/train\n"
        )
    assert command_lines(done.stdout) == command_lines(expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kto", "--model", "M", "--out", "O"], "METHOD must be sft or dpo, not 'kto'"),
        (["sft", "--out", "O"], "--model is missing"),
        (["sft", "--model", "M", "--out", "O", "--rounds", "0"], "whole number from 1"),
        (["sft", "dpo"], "'dpo' is one word too many"),
        (["sft", "--generate"], "--generate needs a value"),
    ],
)
def test_iterate_refuses(words, message):
    done = run(ITERATE, *words)
    assert done.returncode == 2
    assert message in done.stderr
