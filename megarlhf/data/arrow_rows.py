"""Rows of Parquet and Arrow files, read a piece at a time: a file may be larger than memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from megarlhf.data.rows import Row
from megarlhf.errors import UserError

if TYPE_CHECKING:
    import pyarrow

PIECE = 1024  # rows that are Python objects at one time


def parquet_rows(file: Path) -> Iterator[Row]:
    """The rows of a Parquet file.

    Raises:
        UserError: It cannot be read.
    """
    return _rows(file, "Parquet", _parquet_batches(file))


def arrow_rows(file: Path) -> Iterator[Row]:
    """The rows of an Arrow file, in the file format or the streaming format.

    Raises:
        UserError: It cannot be read.
    """
    return _rows(file, "Arrow", _arrow_batches(file))


def _rows(file: Path, kind: str, batches: Iterator["pyarrow.RecordBatch"]) -> Iterator[Row]:
    import pyarrow

    number = 0
    try:
        for batch in batches:
            for begin in range(0, batch.num_rows, PIECE):
                for values in batch.slice(begin, PIECE).to_pylist():
                    number += 1
                    yield Row(values, f"{file}, row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"does not read as {kind}: {' '.join(str(error).split())}",
            where=str(file),
            fix="write the file again, or read it in the format that it has",
        ) from error


def _parquet_batches(file: Path) -> Iterator["pyarrow.RecordBatch"]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file, memory_map=True) as parquet:
        yield from parquet.iter_batches(batch_size=PIECE)


def _arrow_batches(file: Path) -> Iterator["pyarrow.RecordBatch"]:
    import pyarrow

    with pyarrow.memory_map(str(file)) as mapped:
        try:
            reader = pyarrow.ipc.open_file(mapped)
        except pyarrow.ArrowInvalid:  # no footer: the streaming format, as `datasets` writes it
            mapped.seek(0)
            yield from pyarrow.ipc.open_stream(mapped)
            return
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)
