"""Where rows come from: JSON, Parquet and Arrow files, or whatever `datasets` loads."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

from megarlhf.data.arrow_rows import arrow_rows, parquet_rows
from megarlhf.data.hub_rows import HubRows
from megarlhf.data.json_rows import json_rows
from megarlhf.data.mixing import check_probabilities, mixed
from megarlhf.data.rows import Row, check_keys
from megarlhf.errors import UserError

PREFIXES = ("json", "parquet", "arrow", "csv")
SUFFIXES = {
    "json": (".json", ".jsonl"),
    "parquet": (".parquet",),
    "arrow": (".arrow",),
    "csv": (".csv",),
}
KIND_OF_SUFFIX = {suffix: kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes}
READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "json": json_rows,
    "parquet": parquet_rows,
    "arrow": arrow_rows,
}


class Source(Protocol):
    """Rows in an order, as often as one iterates, and what identifies them."""

    def __iter__(self) -> Iterator[Row]:
        """The rows."""
        ...

    @property
    def identity(self) -> Any:
        """What changes when the rows do; JSON types only."""
        ...


class FileRows:
    """The rows of a file, or of a directory's files of one kind in the order of their names.

    Args:
        kind: A key of `READERS`.
        path: The file or directory.
        split: Of a directory, only the files called ``SPLIT.*`` or ``SPLIT-*``; None takes those of
            the split ``train``, if there are any, or all.
    """

    def __init__(self, kind: str, path: Path, split: str | None) -> None:
        self.kind, self.path, self.split = kind, path, split

    def __iter__(self) -> Iterator[Row]:
        for file in self._files():
            yield from READERS[self.kind](file)

    @property
    def identity(self) -> Any:
        """Name, size and time of last change of every file."""
        stats = [(str(file.resolve()), file.stat()) for file in self._files()]
        return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]

    def _files(self) -> list[Path]:
        if self.path.is_file():
            if self.split is None:
                return [self.path]
            raise UserError(
                f"one file has no split {self.split!r}",
                where=str(self.path),
                fix="leave the split out, or give a directory with a file of that name",
            )
        if not self.path.is_dir():
            raise UserError(
                "no such file or directory", where=str(self.path), fix="correct the path"
            )
        suffixes = SUFFIXES[self.kind]
        files = sorted(file for file in self.path.iterdir() if file.suffix in suffixes)
        of_split = [f for f in files if f.stem.partition("-")[0] == (self.split or "train")]
        if of_split or self.split is not None:
            files = of_split
        if not files:
            named = f" of the split {self.split!r}" if self.split is not None else ""
            raise UserError(
                f"the directory holds no {' or '.join(suffixes)} file{named}",
                where=str(self.path),
                fix="correct the path" + (" or the split" if named else ""),
            )
        return files


@dataclass(frozen=True)
class Selection:
    """Which rows of which sources a data set is made of.

    Attributes:
        spec: One source or several, separated by commas. Each is ``json@PATH``, ``parquet@PATH``
            or ``arrow@PATH`` with a file or a directory of such files, a file with one of the
            endings .json, .jsonl, .parquet, .arrow and .csv, a directory that
            ``Dataset.save_to_disk`` wrote, or what ``datasets.load_dataset`` takes
            (``NAME:CONFIG`` for one of its configurations).
        split: Which split, of sources that have some; None is the one called ``train``, or the
            only one.
        probabilities: How often each source is drawn from; None takes one after the other.
        mixing: When a mix ends; see `mixed`.
        max_samples: Only so many rows.
    """

    spec: str
    split: str | None = None
    probabilities: tuple[float, ...] | None = None
    mixing: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"
    max_samples: int | None = None

    def __iter__(self) -> Iterator[Row]:
        sources = self._sources()
        rows: Iterator[Row] = (row for source in sources for row in source)
        if self.probabilities is not None:
            rows = mixed(sources, self.probabilities, all_exhausted=self.mixing == "all_exhausted")
        return islice(rows, self.max_samples)

    def identity(self) -> Any:
        """What changes when the rows do; JSON types only."""
        sources = [source.identity for source in self._sources()]
        return [sources, self.probabilities, self.mixing, self.max_samples]

    def _sources(self) -> list[Source]:
        specs = split_specs(self.spec)
        check_probabilities(self.probabilities, specs)
        return [_source(spec, self.split) for spec in specs]


def split_specs(spec: str) -> list[str]:
    """The sources of a specification; a comma in the path of an existing file does not separate."""
    _, path = _prefix_and_path(spec)
    return [spec] if Path(path).exists() else [part.strip() for part in spec.split(",")]


def read_rows(
    spec: str | Selection, *, required_keys: Sequence[str], max_samples: int | None = None
) -> list[Row]:
    """Read the rows of a data set, in order, into memory.

    Args:
        spec: See `Selection`.
        required_keys: Keys that every row must have.
        max_samples: Read only so many rows (where ``spec`` does not say it).

    Raises:
        UserError: The data cannot be read, there are no rows, a row is not a JSON object or lacks
            a key.
    """
    selection = Selection(spec, max_samples=max_samples) if isinstance(spec, str) else spec
    rows = []
    for row in selection:
        check_keys(row, required_keys)
        rows.append(row)
    if not rows:
        raise no_rows(selection.spec)
    return rows


def no_rows(spec: str) -> UserError:
    """The error for an empty data set."""
    return UserError("there are no rows", where=spec, fix="give data with at least one row")


def _prefix_and_path(spec: str) -> tuple[str | None, str]:
    prefix, at, path = spec.partition("@")
    return (prefix, path) if at and prefix in PREFIXES else (None, spec)


def _source(spec: str, split: str | None) -> Source:
    prefix, name = _prefix_and_path(spec)
    path = Path(name)
    kind = prefix or (None if path.is_dir() else KIND_OF_SUFFIX.get(path.suffix))
    if kind is None:
        return HubRows(name, split)
    if kind in READERS:
        return FileRows(kind, path, split)
    if not path.exists():
        raise UserError("no such file or directory", where=name, fix="correct the path")
    return HubRows(name, split, builder=kind)
