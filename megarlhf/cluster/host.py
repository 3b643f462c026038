"""What each rank of torchrun does for the driver: keeps processes on its machine."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Client

from megarlhf.cluster.calls import Line
from megarlhf.cluster.processes import QUIET
from megarlhf.errors import ProcessLost

# Of torchrun's own world: whoever finds them would take our processes for its ranks.
LAUNCHERS = ("TORCHELASTIC_", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "RANK", "WORLD_SIZE")


@dataclass(frozen=True)
class Meeting:
    """Where the driver listens, and the key that its callers know."""

    host: str
    port: int
    key: str

    def line(self) -> Line:
        """A line to the driver.

        Raises:
            EOFError, OSError: It is gone.
        """
        return Line(Client((self.host, self.port), authkey=bytes.fromhex(self.key)))


class Host:
    """Starts and ends processes here, each the first of a process group.

    Args:
        meeting: Where they meet the driver.
        ended: Called with the number of one that ended by itself, and how.
    """

    def __init__(self, meeting: Meeting, ended: Callable[[int, str], None]) -> None:
        self._meeting, self._ended = meeting, ended
        self._processes: dict[int, subprocess.Popen] = {}

    def start(self, number: int, name: str, environment: dict[str, str]) -> None:
        """Start a process, which the driver knows by its number."""
        own = {key: text for key, text in os.environ.items() if not key.startswith(LAUNCHERS)}
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "megarlhf.cluster.child", name],
                env={**own, **QUIET, **environment},
                stdin=subprocess.PIPE,
                start_new_session=True,  # a group to kill as a whole
            )
        except OSError as error:
            self._ended(number, f"{name} could not be started: {error.strerror}")
            return
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone: `_watch` says so
            process.stdin.write(json.dumps({**asdict(self._meeting), "number": number}).encode())
            process.stdin.write(b"\n")
            process.stdin.flush()
        self._processes[number] = process
        threading.Thread(target=self._watch, args=(number, name, process), daemon=True).start()

    def kill(self, number: int) -> None:
        """End a process and all that it started."""
        process = self._processes.pop(number, None)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def close(self) -> None:
        """End all."""
        for number in list(self._processes):
            self.kill(number)

    def _watch(self, number: int, name: str, process: subprocess.Popen) -> None:
        code = process.wait()
        if number in self._processes:
            with contextlib.suppress(ProcessLookupError):  # what it started, too
                os.killpg(process.pid, signal.SIGKILL)
            how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            self._ended(number, f"process {process.pid} ({name}) ended unexpectedly: {how}")


def serve_host(meeting: Meeting, rank: int, node: str, device: str) -> None:
    """Do what the driver says, until it ends the run.

    Raises:
        ProcessLost: It is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the driver decides when a run ends
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError):
        line = meeting.line()
        line.send(("host", rank, node, device))
        with contextlib.closing(Host(meeting, partial(_report, line))) as host:
            while True:
                what, *args = line.receive()
                if what == "end":
                    return
                getattr(host, what)(*args)
    raise ProcessLost("rank 0 of torchrun, the driver, is gone", fix="see its output")


def _report(line: Line, number: int, how: str) -> None:
    with contextlib.suppress(OSError):
        line.send((number, how))
