"""Tokenized rows in Arrow's file format, in memory or on disk; records are made when one is read."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from megarlhf.data.accounting import RowReport
from megarlhf.data.record_batches import FIELD, VALUE, flat, read_example
from megarlhf.data.records import Example

if TYPE_CHECKING:
    import pyarrow

OPEN_BATCHES = 256  # record batches whose description is kept at hand


@dataclass
class StoreInfo:
    """What is known of stored rows without reading them; a JSON file beside those on disk.

    Attributes:
        report: What became of the data set's rows.
        batch_rows: Rows of each record batch.
        highest_token: The highest token id; -1 without rows.
        token_hash: Hash of all tokens, and of the numbers that rows have.
    """

    report: RowReport = field(default_factory=RowReport)
    batch_rows: list[int] = field(default_factory=list)
    highest_token: int = -1
    token_hash: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; `from_dict` reads it."""
        return {**vars(self), "report": self.report.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "StoreInfo":
        """What `to_dict` gave."""
        return cls(**{**values, "report": RowReport.from_dict(values["report"])})


class StoredRows(Sequence[Example]):
    """Rows of a store, as examples that are made when they are asked for.

    Args:
        file: The store's file or its bytes.
        info: What `StoreWriter` found out.

    Attributes:
        report: What became of the data set's rows.
        highest_token: The highest token id.
        token_hash: Hash of all tokens; identifies the rows.
    """

    def __init__(self, file: "Path | pyarrow.Buffer", info: StoreInfo) -> None:
        import pyarrow

        source = pyarrow.memory_map(str(file)) if isinstance(file, Path) else file
        reader = pyarrow.ipc.open_file(source)
        self._info = info
        self._batch = lru_cache(OPEN_BATCHES)(reader.get_batch)
        self._ends = list(accumulate(info.batch_rows))
        self.report = info.report
        self.highest_token = info.highest_token
        self.token_hash = info.token_hash

    def __len__(self) -> int:
        return self.report.kept

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        place = bisect_right(self._ends, number)
        begin = self._ends[place] - self._info.batch_rows[place]
        return read_example(self._batch(place), number - begin)

    def __iter__(self) -> Iterator[Example]:
        return (self[number] for number in range(len(self)))


class StoreWriter:
    """Writes record batches of examples and finds out what `StoreInfo` holds.

    Args:
        sink: Where to; a file or a stream of Arrow's.
    """

    def __init__(self, sink: Any) -> None:
        self._sink = sink
        self._writer: Any = None
        self._digest = _digest()
        self._number_digests: dict[str, hashlib.blake2b] = {}
        self._info = StoreInfo()

    def write(self, batch: "pyarrow.RecordBatch", report: RowReport) -> None:
        """Append the examples of the next rows; ``report`` is on these rows."""
        import pyarrow

        self._info.report.add(report)
        if not batch.num_rows:
            return
        if self._writer is None:
            self._writer = pyarrow.ipc.new_file(self._sink, batch.schema)
        self._writer.write_batch(batch)
        self._info.batch_rows.append(batch.num_rows)
        token_ids, lengths = flat(batch, "token_ids"), flat(batch, "lengths").astype(np.int64)
        self._info.highest_token = max(self._info.highest_token, int(token_ids.max()))
        begins = np.cumsum(lengths) - lengths
        marked = np.insert(token_ids.astype(np.int64), begins, lengths)  # as `ShuffledStream` does
        self._digest.update(marked.tobytes())
        for name in batch.schema.names:
            if name.startswith((FIELD, VALUE)):
                numbers = flat(batch, name) if name.startswith(FIELD) else batch.column(name)
                digest = self._number_digests.setdefault(name, _digest())
                digest.update(np.asarray(numbers).tobytes())

    def close(self) -> StoreInfo:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
        for name, digest in sorted(self._number_digests.items()):
            self._digest.update(f"{name} {digest.hexdigest()}".encode())
        self._info.token_hash = self._digest.hexdigest()
        return self._info


def _digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)
