"""A Ray cluster by hand: two loopback addresses as two machines."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.processes import free_port, processes_with
from tests.launch.scripts import LAUNCH, environment, run

RAY = LAUNCH / "ray.sh"
NODES = """
import ray
ray.init(log_to_driver=False, logging_level="ERROR")
print(sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]))
"""


def test_two_machines_join_and_only_they_are_ended(tmp_path: Path):
    port = free_port()
    first, second = f"127.77.{port % 250}.1", f"127.77.{port % 250}.2"
    at = ["--dir", str(tmp_path)]
    env = environment(RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="0")
    try:
        done = run(RAY, "up", "--address", first, "--port", str(port), *at, env=env)
        assert done.returncode == 0, done.stderr
        join = done.stderr.strip().split("launch/ray.sh up ")[1].split()
        done = run(RAY, "up", *join, "--address", second, *at, env=env)
        assert done.returncode == 0, done.stderr
        again = run(RAY, "up", *join, "--address", second, *at, env=env)
        assert (again.returncode, "runs at" in again.stderr) == (1, True)

        lines = [shlex.split(line) for line in run(RAY, "env", *at).stdout.splitlines()]
        variables = dict(word.split("=", 1) for line in lines for word in line[1:])
        client = [sys.executable, "-c", NODES]
        found = subprocess.run(
            client, env=env | variables, capture_output=True, text=True, timeout=60
        )
        assert found.stdout == f"['{first}', '{second}']\n", found.stderr
    finally:
        done = run(RAY, "down", *at, env=env)
    assert done.returncode == 0, done.stderr
    assert "at 2 addresses" in done.stderr
    assert processes_with(f"/tmp/ray-megarlhf-{first}") == {}
    assert not list(Path("/tmp").glob(f"ray-megarlhf-{first[:-1]}*"))


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("", 2, "say up, env or down"),
        ("up --port 7000", 2, "needs --address"),
        ("up --join host", 2, "--join takes ADDRESS:PORT"),
        ("up --join host:99", 2, "the port of --join takes a whole number"),
        ("up --address ::1", 2, "--address takes a name or an IPv4 address, not '::1'"),
        ("up --address localhost", 1, "or as a loopback address only"),
        ("up --address host --port 07000", 2, "--port takes a whole number from 1024 to 65534"),
        ("up --join no-host.invalid:7000", 1, "no-host.invalid is not found here"),
        ("up --join 127.0.0.1:7000", 1, "copy it from 127.0.0.1"),
        ("env", 1, "no cluster in"),
    ],
)
def test_names_what_is_wrong(tmp_path: Path, line: str, code: int, message: str):
    done = run(RAY, *line.split(), *(["--dir", str(tmp_path)] if line else []))
    assert done.returncode == code
    assert message in done.stderr
