"""How much memory a process takes at most while something runs."""

import threading
from pathlib import Path

PAGES_PER_MIB = 256
PERIOD_S = 0.001


class Watch:
    """Looks at this process's resident memory every millisecond, from now until `stop`.

    Args:
        anonymous: Leave out what is shared with other processes or mapped from files.
    """

    def __init__(self, *, anonymous: bool) -> None:
        self._anonymous = anonymous
        self._before = self._most = self._pages()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> tuple[float, float]:
        """MiB now and at most, beyond what there was at the beginning."""
        self._done.set()
        self._thread.join()
        now = self._pages()
        most = max(self._most, now)
        return (now - self._before) / PAGES_PER_MIB, (most - self._before) / PAGES_PER_MIB

    def _look(self) -> None:
        while not self._done.wait(PERIOD_S):
            self._most = max(self._most, self._pages())

    def _pages(self) -> int:
        resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
        return resident - shared if self._anonymous else resident
