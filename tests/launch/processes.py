"""Waiting for processes, and finding those that are left."""

import socket
import time
from collections.abc import Callable
from pathlib import Path


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def until(true: Callable[[], object], seconds: float, otherwise: str) -> None:
    """Wait; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.2)


def processes_with(text: str) -> dict[int, str]:
    """The command lines of running processes that have `text` in them (zombies have none)."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        if text in line:
            found[int(file.parent.name)] = line
    return found
