"""slurm.sbatch and submit.sh: the commands that they would run.

The real thing is in end_to_end/test_slurm.py.
"""

import shlex
import shutil
import sys
from pathlib import Path

import pytest

from tests.launch.scripts import LAUNCH, command_lines, environment, program, run

SLURM = LAUNCH / "slurm.sbatch"
SUBMIT = LAUNCH / "submit.sh"
JOB = {"SLURM_JOB_ID": "5003", "SLURM_JOB_NODELIST": "n[1-2]"}
STEP = shlex.split(
    "srun --overlap --kill-on-bad-exit=1 --cpu-bind=none --input=none --unbuffered "
    "--nodes=2 --ntasks=2 --ntasks-per-node=1 --nodelist=n1,n2"
)


@pytest.fixture
def fake_slurm(tmp_path: Path) -> Path:
    """A folder with a scontrol that knows n1 and n2."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program(
        folder / "scontrol",
        'case "$*" in\n'
        "'show hostnames n[1-2]') printf 'n1\\nn2\\n' ;;\n"
        '"show node n"?) echo "   NodeAddr=127.0.0.1${3#n} NodeHostName=h Version=22" ;;\n'
        "*) exit 1 ;;\nesac\n",
    )
    return folder


def planned(fake_slurm: Path, folder: Path, *words: str) -> list[list[str]]:
    """The lines of a dry run in `folder`."""
    done = run(SLURM, "--dry-run", *words, env=environment(fake_slurm, **JOB), cwd=folder)
    assert done.returncode == 0, done.stderr
    return command_lines(done.stdout)


def test_rl_runs_on_a_ray_cluster(fake_slurm: Path, tmp_path: Path):
    logs = f"{tmp_path}/slurm-5003-logs/start-0"
    lines = planned(fake_slurm, tmp_path, "--wait", "60", "--", "rl", "--config", "c", "a.b=[1, 2]")
    made, stop, check, ray, head, worker, joined, driver, down = lines
    assert made == ["mkdir", "-p", f"{logs}/driver", f"{logs}/ray-n1", f"{logs}/ray-n2"]
    assert stop == ["export", f"MEGARLHF_STOP_FILE={logs}/stop"]
    script = str(LAUNCH / "check_node.py")
    addresses = ["127.0.0.11", "127.0.0.12"]
    # All that is wrong, of all nodes, in whole lines.
    every = [word.replace("bad-exit=1", "bad-exit=0") for word in STEP if word != "--unbuffered"]
    assert check == [*every, sys.executable, script, "--shared", logs, *addresses]
    assert ray[:3] == ["export", "RAY_ADDRESS=127.0.0.11:20006", "RAY_AUTH_MODE=token"]
    for number, (line, address) in enumerate(zip((head, worker), addresses, strict=True)):
        node = f"n{number + 1}"
        assert (line[0], line[-1]) == ("srun", "&")
        assert {f"--nodelist={node}", f"--node-ip-address={address}"} <= set(line)
        assert f"--output={logs}/ray-{node}/ray.log" in line
        assert f"--temp-dir=/tmp/ray-5003-{number}" in line
    assert {"--head", "--port=20006"} <= set(head)
    assert "--head" not in worker
    assert "--address=127.0.0.11:20006" in worker
    assert joined[-2:] == ["2", "60"]  # wait for 2 nodes, 60 s
    assert "--nodelist=n1" in driver
    assert driver[-7:] == [
        *(sys.executable, "-m", "megarlhf", "rl"),
        *("--config", "c", "a.b=[1, 2]"),
    ]
    assert down == ["touch", f"{logs}/down"]


def test_offline_methods_run_by_torchrun(fake_slurm: Path, tmp_path: Path):
    (tmp_path / "env").touch()
    words = shlex.split("--no-check --nproc 8 --env-file env --log-dir L -- sft a=b")
    line = planned(fake_slurm, tmp_path, *words)[-1]
    logs = f"{tmp_path}/L/5003/start-0"
    bash = line[len(STEP) : len(STEP) + 4]
    assert (bash[:2], bash[3]) == (["bash", "-c"], f"{tmp_path}/env")
    assert bash[2].endswith('; set -a; source "$0"; set +a; exec "$@"')
    assert line == [
        *(*STEP, *bash, "env", f"PYTHON={sys.executable}", str(LAUNCH / "torchrun.sh")),
        *("--log-dir", logs, "--nproc", "8", "--nnodes", "2"),
        *("--master-addr", "127.0.0.11", "--master-port", "20006", "--", "sft", "a=b"),
    ]


def test_containers(fake_slurm: Path, tmp_path: Path):
    root, mount = str(LAUNCH.parent), ["--mount", "/data:/data"]
    always = [f"{tmp_path}:{tmp_path}", f"{root}:{root}"]
    mounts = ["/data:/data", *always, f"{tmp_path}/slurm-5003-logs:{tmp_path}/slurm-5003-logs"]
    line = planned(fake_slurm, tmp_path, "--container", "a/b:1", *mount, "--", "sft")[-1]
    assert line[: len(STEP) + 3] == [
        *(*STEP, "--container-image=a/b:1", f"--container-mounts={','.join(mounts)}"),
        f"--container-workdir={tmp_path}",
    ]
    line = planned(fake_slurm, tmp_path, "--container", "i.sif", *mount, "--", "sft")[-1]
    binds = [word for name in mounts for word in ("--bind", name)]
    apptainer = ["apptainer", "exec", "--nv", "--pwd", str(tmp_path), *binds, "i.sif"]
    assert line[len(STEP) :][: len(apptainer)] == apptainer


def test_dry_run_without_scontrol(tmp_path: Path):
    few = tmp_path / "few"  # a PATH without scontrol, whatever this machine has
    few.mkdir()
    for name in ("bash", "awk", "cat", "dirname", "getent", "od", "realpath", "sed", "tr"):
        (few / name).symlink_to(shutil.which(name))
    variables = environment(SLURM_JOB_ID="7") | {"PATH": str(few)}
    words = ["--dry-run", "--", "rl"]
    done = run(SLURM, *words, env=variables | {"SLURM_JOB_NODELIST": "x1.invalid,x2.invalid"})
    assert done.returncode == 0, done.stderr
    assert "--node-ip-address=x2.invalid" in done.stdout
    done = run(SLURM, *words, env=variables | {"SLURM_JOB_NODELIST": "x[1-2]"})
    assert done.returncode == 1
    assert "cannot expand the node list 'x[1-2]' without scontrol" in done.stderr


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("", 2, "no megarlhf command"),
        ("-- demo", 2, "COMMAND must be rl, generate, sft"),
        ("--nodes 2 -- rl", 2, "unknown option '--nodes'"),
        ("rl", 2, "'rl' stands before '--'"),
        ("--port 80 -- rl", 2, "--port takes a whole number from 1024"),
        ("--env-file none -- rl", 1, "no file 'none'"),
        ("-- rl", 1, "not inside a Slurm job"),
    ],
)
def test_names_what_is_wrong(line: str, code: int, message: str):
    done = run(SLURM, *line.split())
    assert done.returncode == code
    assert message in done.stderr
    assert ("usage: sbatch" in done.stderr) == (code == 2)


def test_submit_writes_the_line_for_sbatch():
    words = (
        "--nodes 4 --gpus 8 --account A --partition P --time 4:00 --save-seconds 600 --sbatch --mem=0 "
        "--container c.sif --mount /d:/d --env-file e --dry-run -- rl --config f.yaml"
    )
    done = run(SUBMIT, *words.split(), "a=[1, 2]")
    assert done.returncode == 0, done.stderr
    assert command_lines(done.stdout) == command_lines(
        "sbatch --nodes=4 --signal=B:USR1@600 --account=A --partition=P --time=4:00 --mem=0 "
        f"--gpus-per-node=8 {SLURM} --container c.sif --mount /d:/d --env-file e -- "
        "rl --config f.yaml 'a=[1, 2]'"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--nodes 2", "no megarlhf command"),
        ("--nodes 2 -- sftt", "COMMAND must be rl, generate, sft"),
        ("--nodes none -- rl", "--nodes takes a whole number"),
        ("--gpus 0 -- rl", "--gpus takes a whole number from 1"),
        ("--account -- rl", "--account needs a value"),
        ("--sbatch --array=1-4 -- rl", "an array would run this very line"),
        ("--cores 2 -- rl", "unknown option '--cores'"),
    ],
)
def test_submit_refuses(line: str, message: str):
    done = run(SUBMIT, *line.split())
    assert done.returncode == 2
    assert message in done.stderr
