"""slurm.sbatch run whole, on stand-ins for Slurm's programs and for what it runs: what is seldom seen.

The real thing is in end_to_end/test_slurm.py.
"""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.processes import until
from tests.launch.scripts import LAUNCH, environment, program, run

SLURM = LAUNCH / "slurm.sbatch"
SCONTROL = """
echo "$*" >>"${0%/*}/asked"
case "$*" in
'show hostnames n[1-2]') printf 'n1\\nn2\\n' ;;
'show node n'?) echo "   NodeAddr=127.0.0.1${3#n} NodeHostName=h" ;;
'show job 7') printf '%s\\n   Command=%s\\n' "${STATE:-JobState=RUNNING Reason=None}" "$COMMAND" ;;
'requeue 7') ;;
*) exit 1 ;;
esac
"""
# As many tasks as asked for, each with its node's variables.
SRUN = """
while [[ $1 == -* ]]; do
    [[ $1 != --ntasks=* ]] || tasks=${1#*=}
    shift
done
for ((task = 0; task < tasks; task++)); do
    SLURM_NODEID=$task SLURMD_NODENAME=n$((task + 1)) "$@" &
done
status=0
for job in $(jobs -p); do wait "$job" || status=$?; done
exit "$status"
"""
# A Python in which torchrun's run waits until it is told to stop, and has then taken the STEPS.
PYTHON = f"""
[[ $* == *torch.distributed.run* ]] || exec {sys.executable} "$@"
until [[ -e $MEGARLHF_STOP_FILE ]]; do sleep 0.1; done
echo "$STEPS" >"$MEGARLHF_STOP_FILE"
"""


class Job:
    """A job's life in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        program(self.bin / "scontrol", SCONTROL)
        program(self.bin / "srun", SRUN)
        self.python = program(self.bin / "python", PYTHON)

    def environment(self, **extra: str) -> dict[str, str]:
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "PYTHON": str(self.python)}
        return environment(self.bin, **job, PYTHONPATH=str(LAUNCH.parent)) | extra

    def start(self, *words: str, **extra: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", str(SLURM), *words, "--", "sft"],
            cwd=self.folder,
            env=self.environment(**extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def told(self, life: int, steps: str, **extra: str) -> tuple[int, str]:
        """Status and errors of a life that is told in its run to stop, and has done so many steps."""
        job = self.start("--no-check", SLURM_RESTART_COUNT=str(life), STEPS=steps, **extra)
        logs = self.folder / "slurm-7-logs" / f"start-{life}"
        until(lambda: len(list(logs.glob("*-node?"))) == 2, 20, "no torchrun")
        job.send_signal(signal.SIGUSR1)
        errors = job.communicate(timeout=30)[1]
        return job.returncode, errors

    def asked(self) -> list[str]:
        """What scontrol was called with."""
        return (self.bin / "asked").read_text().splitlines()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_a_job_goes_back_into_the_queue_unless_it_does_no_steps(job: Job):
    for life, steps in enumerate(("5", "9", "9")):
        status, errors = job.told(life, steps)
        assert status == 130, errors
        assert f"stopped after step {steps}, and queued again" in errors
    assert job.asked().count("requeue 7") == 3
    status, errors = job.told(3, "9")
    assert status == 1
    assert "no step was done since it came last (step 9)" in errors
    assert job.asked().count("requeue 7") == 3


def test_a_job_that_was_cancelled_meanwhile_does_not_come_back(job: Job):
    status, errors = job.told(
        0, "5", STATE="JobState=COMPLETING Reason=None"
    )  # as seen of Slurm 22.05
    assert status == 130, errors
    assert "stopped after step 5, and cancelled" in errors.splitlines()[-1]
    _, errors = job.told(1, "9", STATE="JobState=COMPLETING Reason=TimeLimit")
    assert "stopped after step 9, and queued again" in errors
    assert job.asked().count("requeue 7") == 1


def test_a_job_that_is_told_before_its_run_began_is_queued_again(job: Job):
    checks = f"touch {job.folder}/checking; sleep 0.5; printf '%s\\tfit\\tsame\\n' $SLURM_NODEID"
    program(job.python, f"[[ $* != *check_node* ]] || {{ {checks}; exit; }}\nexit 1\n")
    started = job.start()
    until((job.folder / "checking").exists, 20, "no check")
    started.send_signal(signal.SIGUSR1)
    errors = started.communicate(timeout=60)[1]
    assert started.returncode == 130, errors
    assert "stopped after step 0, and queued again" in errors
    assert not list(job.folder.rglob("*-node?")), "it ran all the same"


def test_every_unfit_node_is_named(job: Job):
    program(job.bin / "nvidia-smi", "echo all of $SLURMD_NODENAME are lost; exit 9")
    done = run(SLURM, "--", "sft", env=job.environment(), cwd=job.folder)
    assert done.returncode == 1
    for node in ("n1", "n2"):
        assert f"node {node}: nvidia-smi fails: all of {node} are lost" in done.stderr
    assert "a node is not fit for the run" in done.stderr.splitlines()[-1]


def test_a_missing_environment_file_is_said(job: Job):
    (job.folder / "env").touch()
    program(job.bin / "srun", f"rm -f {job.folder}/env\n{SRUN}")  # which the node does not see
    words = ["--no-check", "--env-file", "env", "--", "sft"]
    done = run(SLURM, *words, env=job.environment(), cwd=job.folder)
    assert done.returncode == 1
    assert f"no {job.folder}/env on" in done.stderr


def test_finds_its_folder_from_the_copy_that_slurm_runs(job: Job):
    folder = job.folder / "a check out"
    folder.mkdir()
    (folder / "launch").symlink_to(LAUNCH)
    copy = shutil.copy(SLURM, job.folder / "slurm_script")
    words = ["--no-check", "--dry-run", "--", "sft"]
    variables = job.environment(
        COMMAND=f"{folder}/launch/slurm.sbatch --no-check -- sft a=/slurm.sbatch"
    )
    done = run(copy, *words, env=variables, cwd=job.folder)
    assert done.returncode == 0, done.stderr
    assert "a\\ check\\ out/launch/torchrun.sh" in done.stdout
    program(job.bin / "scontrol", "echo cannot reach the controller >&2; exit 1")
    program(job.bin / "sleep", "exit 0")
    done = run(copy, *words, env=variables, cwd=job.folder)
    assert done.returncode == 1
    assert "does not find its folder" in done.stderr.splitlines()[-1]


def test_an_array_is_refused(job: Job):
    done = run(SLURM, "--", "sft", env=job.environment(SLURM_ARRAY_TASK_ID="1"), cwd=job.folder)
    assert done.returncode == 1
    assert "submit a job a run" in done.stderr
