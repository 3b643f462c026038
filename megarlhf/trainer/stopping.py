"""Ctrl-C and SIGTERM ask a run to stop after the step it is in; a second one stops it at once.

So does the file of a launcher (`megarlhf/launcher.py`), which reaches every rank.
"""

import signal
import time
from types import FrameType, TracebackType

from megarlhf import launcher

ECHO_S = 1.0  # in which torchrun passes on to its ranks what a terminal has sent to them already


class StopRequest:
    """True once the process was asked to stop; use as a context manager in the main thread."""

    def __init__(self) -> None:
        self._asked = False
        self._when = 0.0

    def __enter__(self) -> "StopRequest":
        self._previous = {
            number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self._asked or launcher.asked_to_stop()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and time.monotonic() - self._when < ECHO_S:
            return
        if self._asked:
            raise KeyboardInterrupt
        self._asked, self._when = True, time.monotonic()
        print("\nstopping after this step (again to stop at once) ...", flush=True)
