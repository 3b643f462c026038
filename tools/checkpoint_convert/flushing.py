"""Bring what is written to the disk while more is read: there is little to wait for at the end."""

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from megarlhf.models.weights.row_files import RowFiles

FLUSH_BYTES = 128 * 2**20


class Flusher:
    """Flushes files in a thread whenever enough was written; use as a context manager.

    Args:
        files: That are being written.
    """

    def __init__(self, files: RowFiles) -> None:
        self._files, self._written = files, 0
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def __enter__(self) -> "Flusher":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def wrote(self, nbytes: int) -> None:
        """So much more is written.

        Raises:
            UserError: What was written before finds no space on the disk.
        """
        self._written += nbytes
        is_idle = self._last is None or self._last.done()
        if self._written >= FLUSH_BYTES and is_idle:
            self._wait()
            self._written = 0
            self._last = self._thread.submit(self._files.sync)

    def finish(self) -> None:
        """Flush the rest: another machine that shares the disk may be the one that publishes.

        Raises:
            UserError: It finds no space on the disk.
        """
        self._wait()
        self._files.sync()

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()  # the system reports what failed only once
