"""ray.sh: what it would run, and what it refuses.

The real thing is in end_to_end/test_two_hosts.py.
"""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.launch.processes import free_port, until
from tests.launch.scripts import LAUNCH, command_lines, environment, program, run

RAY = LAUNCH / "ray.sh"


def test_dry_run(tmp_path: Path):
    at = ["--dir", "a cluster", "--dry-run"]
    done = run(RAY, "up", "--address", "10.0.0.1", *at, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    variables, head = command_lines(done.stdout)
    assert variables[1] == "RAY_ADDRESS=10.0.0.1:6379"
    assert f"RAY_AUTH_TOKEN_PATH={tmp_path}/a cluster/token" in variables
    assert {"--head", "--port=6379", "--node-ip-address=10.0.0.1"} <= set(head)
    words = ["--join", "10.0.0.1:7000", "--address", "10.0.0.2"]
    worker = command_lines(run(RAY, "up", *words, *at, cwd=tmp_path).stdout)[1]
    assert {"--address=10.0.0.1:7000", "--node-ip-address=10.0.0.2"} <= set(worker)
    assert "--head" not in worker


def test_a_port_that_is_taken_is_said_at_once(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = ["--address", "127.0.0.1", "--port", port, "--dir", str(tmp_path)]
        done = run(RAY, "up", *words)
    assert done.returncode == 1
    assert f"something listens on 127.0.0.1:{port} already" in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_did_not_come_up_leaves_nothing(tmp_path: Path):
    python = program(tmp_path / "python", "echo no Ray here; exit 1\n")
    folder = tmp_path / "ray"
    words = ["--address", "127.0.0.1", "--port", str(free_port()), "--dir", str(folder)]
    done = run(RAY, "up", *words, env=environment(PYTHON=str(python)))
    assert done.returncode == 1
    assert "Ray did not start: no Ray here" in done.stderr
    assert [file.name for file in folder.iterdir()] == ["127.0.0.1.log"]


def test_an_interrupted_up_ends_what_it_started(tmp_path: Path):
    python = program(tmp_path / "python", "while :; do sleep 0.1; done\n")
    folder = tmp_path / "ray"
    words = ["up", "--address", "127.0.0.1", "--port", str(free_port()), "--dir", str(folder)]
    script = subprocess.Popen(
        ["env", "--default-signal=INT", "bash", str(RAY), *words],
        env=environment(PYTHON=str(python)),
    )
    until((folder / "127.0.0.1.pid").exists, 20, "nothing was started")
    pid = int((folder / "127.0.0.1.pid").read_text())
    script.send_signal(signal.SIGINT)
    assert script.wait(timeout=60) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


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
