"""launch/ without Slurm over two hosts, each with an address and a name of its own."""

import shlex
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from megarlhf.report.metrics import MetricsLog
from tests.end_to_end.conftest import SFT_STEPS, figures
from tests.launch.hosts import Host, Hosts
from tests.launch.processes import free_port, processes_with
from tests.launch.scripts import LAUNCH, environment

TORCHRUN = str(LAUNCH / "torchrun.sh")
RAY = str(LAUNCH / "ray.sh")
LOGPROB_GAP = 2e-6  # as in test_rl.py


@pytest.fixture(scope="module")
def hosts(tmp_path_factory) -> Iterator[Hosts]:
    hosts = Hosts(tmp_path_factory.mktemp("hosts"), 2, names=True)
    yield hosts
    hosts.close()


def started(host: Host, *words: str, **variables: str) -> subprocess.Popen:
    """A command on a host."""
    # Gloo's interface is that of ranks which other tests had in this very process.
    kept = {k: v for k, v in environment().items() if not k.startswith("GLOO_")}
    return subprocess.Popen(
        [*host.prefix, *words],
        env=kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(LAUNCH.parent)} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen) -> tuple[str, str]:
    """What it printed, and its errors, once it has ended well."""
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, out[-3000:] + err[-3000:]
    return out, err


def test_the_hosts_are_network_namespaces(hosts):
    if hosts.why_loopback:
        pytest.skip(hosts.why_loopback)
    first, second = hosts.all
    reached = finished(started(first, "getent", "hosts", second.known_as))[0].split()
    assert reached == [second.address, second.name]
    assert finished(started(second, "hostname"))[0] == "n2\n"


def test_sft_over_two_hosts_is_as_on_one(hosts, tmp_path, sft_command, whole_sft):
    words = sft_command(tmp_path, f"train.steps={SFT_STEPS}")
    master = (
        f"--nproc 1 --nnodes 2 --master-addr {hosts.all[0].known_as} --master-port {free_port()}"
    )
    command = [TORCHRUN, *master.split(), *words[words.index("--nproc") + 2 :]]
    runs = [
        started(host, *command[:1], "--node-rank", str(rank), *command[1:])
        for rank, host in enumerate(hosts.all)
    ]
    for run in runs:
        finished(run)
    assert figures(tmp_path) == figures(whole_sft)  # bit for bit
    models = [run / "model" / "model.safetensors" for run in (tmp_path, whole_sft)]
    assert models[0].read_bytes() == models[1].read_bytes()
    assert len(list(tmp_path.glob("logs/*-node?/*/attempt_0/0/stdout.log"))) == 2


def test_rl_on_a_ray_cluster_by_hand(hosts, tmp_path, rl_command):
    first, second = hosts.all
    port = str(free_port())
    at, quick = ["--dir", str(tmp_path / "ray")], {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    with ExitStack() as stack:
        for host in hosts.all:
            stack.callback(lambda host=host: finished(started(host, RAY, "down", *at)))
        up = [RAY, "up", "--address", first.known_as, "--port", port, *at]
        join = finished(started(first, *up, **quick))[1].split("launch/ray.sh ")[1].split()
        again = started(first, *up)
        assert "already" in again.communicate(timeout=60)[1]
        finished(started(second, RAY, *join, "--address", second.known_as, *at, **quick))

        lines = finished(started(first, RAY, "env", *at))[0].splitlines()
        variables = dict(word.split("=", 1) for line in lines for word in shlex.split(line)[1:])
        rl = rl_command(tmp_path / "run", "train.steps=1", "data.eval_prompts=null")
        rl += ["cluster.actor_ranks=2", "cluster.actor_nodes=2"]  # one on each, data-parallel
        finished(started(first, *rl, **variables))
    (row,) = [row for row in MetricsLog.read(tmp_path / "run") if "logprob_gap" in row]
    assert row["logprob_gap"] < LOGPROB_GAP
    assert not processes_with(f"{first.address}:{port}"), "processes of the cluster are left"
    left = {file.suffix for file in (tmp_path / "ray").iterdir()}
    assert left == {".log"}
