"""How far the reading and tokenizing of rows is, on the terminal, when it takes long."""

import os
import sys
import time

QUIET_S, INTERVAL_S = 3.0, 5.0  # say nothing before; then say something this often


def is_first_rank() -> bool:
    """Whether this process speaks for all: the first rank, or one that torchrun did not start."""
    return int(os.environ.get("RANK", "0")) == 0


class RowProgress:
    """Counts rows, and from time to time writes a line to standard error."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._rows = 0
        self._begin = time.monotonic()
        self._next = self._begin + QUIET_S

    def advance(self, rows: int) -> None:
        """So many more rows are done."""
        self._rows += rows
        now = time.monotonic()
        if now >= self._next and is_first_rank():
            self._next = now + INTERVAL_S
            rate = self._rows / (now - self._begin)
            print(f"{self._title}: {self._rows} rows, {rate:.0f}/s", file=sys.stderr, flush=True)
