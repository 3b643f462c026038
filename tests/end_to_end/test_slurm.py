"""launch/ on a real Slurm of six nodes on this machine: all jobs at once, then what each left."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from megarlhf.report.metrics import MetricsLog
from tests.end_to_end.conftest import figures
from tests.launch.processes import processes_with, until
from tests.launch.slurm_cluster import SlurmCluster, why_not

SUBMIT = str(Path(__file__).parents[2] / "launch" / "submit.sh")
LOGPROB_GAP = 2e-6  # as in test_rl.py
STEPS = 30
SAVE_SECONDS = 120


@dataclass
class Job:
    """A submitted job: its number, what it printed, where its logs and results are."""

    number: str
    folder: Path

    @property
    def printed(self) -> str:
        return (self.folder / "out.txt").read_text()

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def logs(self) -> Path:
        return self.folder / "logs" / self.number


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[SlurmCluster]:
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    with SlurmCluster(folder, nodes=6) as cluster:
        root = Path(__file__).parents[2]
        cluster.environment |= {
            "PYTHON": sys.executable,
            "PYTHONPATH": str(root),
            "OMP_NUM_THREADS": "1",
        }
        yield cluster
    until(lambda: not processes_with(str(folder)), 10, "processes of a job are left")


@pytest.fixture(scope="module")
def jobs(cluster, sft_command, rl_command) -> dict[str, Job]:
    """Every job, ended: the first was cut by its time limit, for which its ranks were held."""

    def submit(name: str, options: str, words: list[str]) -> Job:
        folder = cluster.folder / name
        folder.mkdir()
        output = f"--output={folder}/out.txt"
        line = f"--nodes 2 --sbatch --parsable --sbatch {output} --log-dir {folder}/logs {options}"
        return Job(cluster.call(SUBMIT, *line.split(), "--", *words), folder)

    def sft(name: str, options: str, *overrides: str) -> Job:
        out = cluster.folder / name / "run"
        command = sft_command(out, f"train.steps={STEPS}", *overrides)
        return submit(name, f"--nproc 1 {options}", command[command.index("--") + 1 :])

    rl = rl_command(cluster.folder / "rl" / "run", "train.steps=2", "data.eval_prompts=null")
    rl += ["cluster.actor_ranks=2", "cluster.actor_nodes=2"]  # one on each, data-parallel
    jobs = {"cut": sft("cut", f"--time 60 --save-seconds {SAVE_SECONDS}")}
    jobs["rl"] = submit("rl", "", rl[rl.index("rl") :])
    jobs["whole"] = sft("whole", "")
    jobs["broken"] = sft("broken", "", "no.such=key")
    _hold_until_told_to_stop(cluster, jobs["cut"])
    for job in jobs.values():
        cluster.wait(job.number, 300)
    return jobs


def _hold_until_told_to_stop(cluster: SlurmCluster, job: Job) -> None:
    """Stop the ranks after some steps, let the time limit come near, and let them go when it is told.

    Slurm looks at the limits every 30 s, and tells a job so much earlier than it asks for. Once it has
    told this one the limit goes away: how long a save takes depends on what else this machine does.
    """
    metrics = job.run / "metrics.jsonl"
    until(lambda: metrics.exists() and '"step": 3,' in metrics.read_text(), 240, "no third step")
    ranks = [
        number
        for number, line in processes_with(f"output.dir={job.run}").items()
        if "-m megarlhf" in line and "torch.distributed.run" not in line
    ]
    for number in ranks:
        os.kill(number, signal.SIGSTOP)
    minutes = cluster.seconds_of(job.number) // 60
    cluster.set_limit(job.number, minutes + SAVE_SECONDS // 60)
    try:
        stop = job.logs / "start-0" / "stop"
        until(stop.exists, 60, "no signal came before the limit")
        cluster.set_limit(job.number, minutes + 60)
    finally:
        for number in ranks:
            os.kill(number, signal.SIGCONT)


def test_the_nodes_are_network_namespaces(cluster, jobs):
    if cluster.hosts.why_loopback:
        pytest.skip(cluster.hosts.why_loopback)
    fit = [line for line in jobs["whole"].printed.splitlines() if " CPUs, " in line]
    used = [host for host in cluster.hosts.all if any(host.name in line for line in fit)]
    assert len(used) == 2
    assert all(f"{host.name} ({host.address}): " in "\n".join(fit) for host in used)


def test_sft_runs_over_two_nodes(cluster, jobs):
    job = jobs["whole"]
    assert cluster.state(job.number) == "COMPLETED", job.printed
    assert [row["step"] for row in MetricsLog.read(job.run)] == list(range(1, STEPS + 1))
    logs = sorted(job.logs.glob("start-0/*-node?/*/attempt_0/0/stdout.log"))
    assert [log.relative_to(job.logs).parts[1][-1] for log in logs] == ["0", "1"]


def test_a_job_that_its_time_limit_cut_goes_on_and_ends_as_a_whole_one(cluster, jobs):
    job = jobs["cut"]
    assert cluster.state(job.number) == "COMPLETED", job.printed
    assert cluster.restarts(job.number) >= 1
    assert "and queued again" in job.printed
    assert "going on after step" in job.printed
    assert figures(job.run) == figures(jobs["whole"].run)  # bit for bit
    models = [run.run / "model" / "model.safetensors" for run in (job, jobs["whole"])]
    assert models[0].read_bytes() == models[1].read_bytes()


def test_rl_runs_on_a_ray_cluster_of_two_nodes(cluster, jobs):
    job = jobs["rl"]
    assert cluster.state(job.number) == "COMPLETED", job.printed
    rows = [row for row in MetricsLog.read(job.run) if "logprob_gap" in row]
    assert [row["step"] for row in rows] == [1, 2]
    assert max(row["logprob_gap"] for row in rows) < LOGPROB_GAP
    workers = job.logs.glob("start-0/ray-*/worker-*.out")
    used = {log.parent.name for log in workers if "ActorWorker" in log.read_text()}
    assert len(used) == 2, "both ranks ran on one node"
    assert not list(Path("/tmp").glob(f"ray-{job.number}-?"))


def test_a_failed_job_shows_the_first_failure_last(cluster, jobs):
    job = jobs["broken"]
    assert cluster.state(job.number) == "FAILED"
    assert "unknown key 'no.such'" in "".join(job.printed.splitlines()[-3:])
    error = next(job.logs.rglob("error.json"))
    assert json.loads(error.read_text())["node"] in {host.name for host in cluster.hosts.all}
