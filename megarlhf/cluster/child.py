"""A process that a rank of torchrun keeps: ``python -m megarlhf.cluster.child NAME``."""

import contextlib
import json
import os
import signal
import sys
import threading

from megarlhf.cluster.calls import serve
from megarlhf.cluster.host import Meeting


def main() -> None:
    """Meet the driver, and serve calls until it, or the rank that keeps this process, is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver
    told = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_keeper, daemon=True).start()
    number = told.pop("number")
    with contextlib.suppress(EOFError, OSError):  # the driver is gone
        line = Meeting(**told).line()
        line.send(("child", number))
        serve(line)
    _end()


def _end_with_keeper() -> None:
    sys.stdin.buffer.read()  # ends when the rank does, however it went
    _end()


def _end() -> None:
    """With all that this process started: it is the first of its process group."""
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
