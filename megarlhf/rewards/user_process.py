"""A process that runs the user's code: start it, talk with it over a socket, kill it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection

LOAD_TIMEOUT_S = 600.0  # the file may load a model when it is imported
WAIT_S = 3.0  # for a process that has closed its socket, until it is gone


class UserProcess:
    """``python -m MODULE DESCRIPTOR ARGUMENT...``, in a session of its own.

    Not `multiprocessing`'s: those import the main module again, and either may not have children
    of their own (which users' functions like to start) or outlive a parent that was killed.

    Args:
        module: What it runs; it gets the number of its end of the socket, then the arguments.
        arguments: Further ones.

    Attributes:
        connection: The owner's end; whoever reads it closes it.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno()), *arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # a group to kill as a whole; Ctrl-C is for the owner
            )
        self._socket, self.connection = ours, Connection(os.dup(ours.fileno()))

    def kill(self) -> None:
        """End the process and all that it started."""
        kill_group(self._process.pid)
        self._process.wait()
        with contextlib.suppress(OSError):  # a thread that still waits reads the end of it
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def ending(self) -> str:
        """How it ended, for a message."""
        try:
            return status_text(self._process.wait(WAIT_S))
        except subprocess.TimeoutExpired:
            return "it closed its socket"


def kill_group(pid: int) -> None:
    """Kill a process that leads a group, and the group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def status_text(code: int) -> str:
    """An exit status, for a message."""
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"
