"""From rows to stored examples: in pieces, in this process or in several."""

import gc
import logging
import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from megarlhf.data.accounting import Finding, RowReport, note
from megarlhf.data.limits import Limit
from megarlhf.data.progress import RowProgress, is_first_rank
from megarlhf.data.record_batches import count_tokens, record_batch
from megarlhf.data.records import Example
from megarlhf.data.rows import Row, check_keys
from megarlhf.data.sources import Selection, no_rows
from megarlhf.data.store import StoreInfo, StoreWriter
from megarlhf.errors import UserError

if TYPE_CHECKING:
    import pyarrow

PIECE = 1000  # rows that are tokenized in one call and stored together
AHEAD = 3  # pieces that wait for each worker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Skip:
    """A row that is left out.

    Attributes:
        reason: Why, as the report names it.
    """

    reason: str


class RowBuilder(Protocol):
    """Makes examples of rows; it can be pickled.

    Attributes:
        keys: Keys that every row must have.
    """

    keys: list[str]

    def __call__(self, rows: list[Row]) -> Sequence[Example | Skip]:
        """An example, or why there is none, for each row.

        Raises:
            UserError: A row is wrong.
        """
        ...


@dataclass(frozen=True)
class PieceMaker:
    """Makes a piece of a data set ready to be stored.

    Attributes:
        builder: Makes examples of rows.
        limit: The most tokens of a sequence.
    """

    builder: RowBuilder
    limit: Limit

    def __call__(self, rows: list[Row]) -> tuple["pyarrow.RecordBatch", RowReport]:
        """The examples of the rows that are left, and what became of the others."""
        for row in rows:
            check_keys(row, self.builder.keys)
        report = RowReport(rows=len(rows))
        kept = []
        for row, built in zip(rows, self.builder(rows), strict=True):
            if isinstance(built, Skip):
                note(report.dropped, built.reason, Finding(1, row.where, 0))
                continue
            fitted = self.limit.fit(built)
            if fitted.reason is not None:
                findings = report.dropped if fitted.example is None else report.cut
                longest = max(len(sequence.token_ids) for sequence in built.sequences)
                note(findings, fitted.reason, Finding(1, row.where, longest))
            if fitted.example is not None:
                kept.append(fitted.example)
        batch = record_batch(kept)
        report.kept = len(kept)
        report.tokens, report.trained_tokens = count_tokens(batch)
        return batch, report


def tokenize_to(sink: Any, rows: Iterable[Row], make: PieceMaker, workers: int) -> StoreInfo:
    """Tokenize rows and write what comes of them, in the order of the rows.

    Args:
        sink: A file's name or a stream of Arrow's.
        rows: The rows; no more of them are held than are worked on.
        make: What is done with them.
        workers: Processes; 1 is this one, in which the tokenizer uses threads of its own.

    Raises:
        UserError: A row is wrong.
    """
    writer, progress = StoreWriter(sink), RowProgress("tokenizing")
    pieces = _pieces(rows)
    with _no_collector():
        for batch, report in map(make, pieces) if workers == 1 else _spread(pieces, make, workers):
            writer.write(batch, report)
            progress.advance(report.rows)
    return writer.close()


def check_outcome(info: StoreInfo, selection: Selection, limit: Limit) -> None:
    """Refuse rows that are too long where that is an error, and a data set of which none is left.

    Says on the log what was dropped and cut.

    Raises:
        UserError: As said.
    """
    report = info.report
    if not report.rows:
        raise no_rows(selection.spec)
    overlong = report.dropped.get(limit.overlong)
    if overlong and (limit.policy == "error" or overlong.count == report.rows):
        total = f"{overlong.count} of {report.rows} rows are too long"
        raise UserError(
            f"{overlong.tokens} tokens are more than data.max_tokens={limit.max_tokens} ({total})",
            where=overlong.where,
            fix="raise data.max_tokens"
            + ("" if overlong.count == report.rows else " or set data.overlong_rows=drop")
            + ", or cut with data.overlong_rows=truncate_right or truncate_left",
        )
    if not report.kept:
        raise UserError(
            "no row is left: " + "; ".join(report.losses()),
            where=selection.spec,
            fix="correct the rows or the settings of the data section",
        )
    if is_first_rank():
        for line in report.losses():
            logger.warning("%s", line)


@contextmanager
def _no_collector() -> Iterator[None]:
    """Without Python's cyclic garbage collector: it would visit every list of tokens repeatedly.

    That took a quarter of the time; a piece has no cycles and goes when it is written.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _pieces(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while piece := list(islice(iterator, PIECE)):
        yield piece


_make: PieceMaker  # in a worker: sent once, not with every piece


def _begin_worker(make: PieceMaker) -> None:
    global _make
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread each: the processes are parallel
    _make = make


def _work(rows: list[Row]) -> tuple["pyarrow.RecordBatch", RowReport]:
    return _make(rows)


def _spread(
    pieces: Iterator[list[Row]], make: PieceMaker, workers: int
) -> Iterator[tuple["pyarrow.RecordBatch", RowReport]]:
    """``map(make, pieces)`` by several processes; only so many pieces are read ahead.

    The processes are started afresh, not forked: this one may have threads and a GPU.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin_worker, (make,)) as pool:
        running: deque[Future] = deque()
        try:
            for piece in pieces:
                running.append(pool.submit(_work, piece))
                if len(running) >= AHEAD * workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
