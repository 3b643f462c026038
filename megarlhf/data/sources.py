"""Rows of a data set, from JSON files or through `datasets`, each with where it came from."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from megarlhf.errors import UserError

JSON_PREFIX = "json@"
JSON_SUFFIXES = (".json", ".jsonl")
BLANKS = b"\xef\xbb\xbf \t\r\n"  # a byte-order mark and white space
DATASETS_FORMATS = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One row of a data set.

    Attributes:
        values: The row, by key.
        where: Where it came from, for error messages: ``FILE:LINE``, or ``SOURCE, row N`` (from 1)
            where there are no lines.
    """

    values: dict[str, Any]
    where: str


def read_rows(
    spec: str, *, required_keys: Sequence[str], max_samples: int | None = None
) -> list[Row]:
    """Read the rows of a data set, in order.

    Args:
        spec: ``json@PATH``, a .json or .jsonl file (JSON lines or one JSON list, whichever it
            holds) or a directory of such files, read in the order of their names. Otherwise a
            parquet, arrow or csv file, a directory that ``Dataset.save_to_disk`` wrote, or whatever
            ``datasets.load_dataset`` takes; of several splits, the one called ``train``.
        required_keys: Keys that every row must have.
        max_samples: Read only so many rows.

    Raises:
        UserError: The data cannot be read, there are no rows, a row is not a JSON object or lacks
            a key.
    """
    is_json = spec.startswith(JSON_PREFIX)
    source = _json_rows(Path(spec.removeprefix(JSON_PREFIX))) if is_json else _datasets_rows(spec)
    rows = []
    for row in islice(source, max_samples):
        _check_keys(row, required_keys)
        rows.append(row)
    if not rows:
        raise UserError("there are no rows", where=spec, fix="give data with at least one row")
    return rows


def short_enough(
    rows: Sequence[Row],
    lengths: Sequence[int],
    *,
    limit: int,
    limit_key: str,
    overlong: str,
    overlong_key: str,
) -> list[int]:
    """Positions of the rows of at most ``limit`` tokens; how many others are dropped is logged.

    Args:
        rows: Rows.
        lengths: Tokens of each row.
        limit: Most tokens a row may have.
        limit_key: Configuration key of ``limit``, for messages.
        overlong: ``"error"`` or ``"drop"``: what to do with longer rows.
        overlong_key: Configuration key of ``overlong``, for messages.

    Raises:
        UserError: A row is longer and ``overlong`` is ``"error"``; or no row is left.
    """
    kept = [position for position, length in enumerate(lengths) if length <= limit]
    dropped = len(rows) - len(kept)
    if dropped and (overlong == "error" or not kept):
        first = next(position for position, length in enumerate(lengths) if length > limit)
        total = f"{dropped} of {len(rows)} rows are too long"
        raise UserError(
            f"{lengths[first]} tokens are more than {limit_key}={limit} ({total})",
            where=rows[first].where,
            fix=f"raise {limit_key}" + (f" or set {overlong_key}=drop" if kept else ""),
        )
    if dropped:
        logger.warning(
            "dropped %d of %d rows: longer than %s=%d", dropped, len(rows), limit_key, limit
        )
    return kept


def _check_keys(row: Row, required_keys: Sequence[str]) -> None:
    for key in required_keys:
        if key not in row.values:
            present = ", ".join(repr(name) for name in row.values) or "none"
            raise UserError(
                f"the row has no key {key!r}; it has {present}",
                where=row.where,
                fix="correct the file, or set the data section's key to one that the rows have",
            )


def _json_rows(path: Path) -> Iterator[Row]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in JSON_SUFFIXES)
        if not files:
            raise UserError("the directory holds no .json or .jsonl file", where=str(path))
    elif path.is_file():
        files = [path]
    else:
        raise UserError("no such file or directory", where=str(path), fix="correct the path")
    for file in files:
        yield from _json_list(file) if _holds_list(file) else _json_lines(file)


def _holds_list(file: Path) -> bool:
    """Whether the first character that is neither blank nor a byte-order mark opens a list."""
    with file.open("rb") as stream:
        first = next((line for line in stream if line.strip(BLANKS)), b"")
    return first.lstrip(BLANKS).startswith(b"[")


def _json_lines(file: Path) -> Iterator[Row]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip(BLANKS):
                continue
            where = f"{file}:{number}"
            try:
                values = json.loads(line)
            except ValueError as error:
                raise _unparsable(error, where) from error
            yield Row(_checked_object(values, where), where)


def _json_list(file: Path) -> Iterator[Row]:
    try:
        entries = json.loads(file.read_bytes())
    except ValueError as error:
        raise _unparsable(error, f"{file}:{getattr(error, 'lineno', 1)}") from error
    for number, values in enumerate(entries, start=1):
        where = f"{file}, row {number}"
        yield Row(_checked_object(values, where), where)


def _unparsable(error: ValueError, where: str) -> UserError:
    """The error for text that is not JSON, or bytes that are not UTF-8."""
    is_json = isinstance(error, json.JSONDecodeError)
    message = f"{error.msg} (column {error.colno})" if is_json else str(error)
    return UserError(
        f"does not parse as JSON: {message}",
        where=where,
        fix="a file holds one JSON object a line, or one list of objects, in UTF-8",
    )


def _checked_object(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise UserError(
            f"a row must be a JSON object, not {type(values).__name__}",
            where=where,
            fix='write rows as {"key": value, ...}',
        )
    return values


def _datasets_rows(spec: str) -> Iterator[Row]:
    import datasets  # slow to import, and JSON files do without

    path = Path(spec)
    is_local = path.is_absolute() or spec.startswith(".") or path.suffix in DATASETS_FORMATS
    if is_local and not path.exists():
        raise UserError("no such file or directory", where=spec, fix="correct the path")
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            data = datasets.load_from_disk(spec)
        elif path.is_file() and path.suffix in DATASETS_FORMATS:
            data = datasets.load_dataset(DATASETS_FORMATS[path.suffix], data_files=spec)
        else:
            data = datasets.load_dataset(spec)
    except Exception as error:  # a library that raises whatever its many backends raise
        message = " ".join(str(error).split())
        raise UserError(
            f"`datasets` cannot load it: {type(error).__name__}: {message}",
            where=spec,
            fix=f"give a path or name that it can load, or {JSON_PREFIX}PATH for JSON files",
        ) from error
    if isinstance(data, dict):
        data = _one_split(data, spec)
    for number, values in enumerate(data, start=1):
        yield Row(dict(values), f"{spec}, row {number}")


def _one_split(splits: dict[str, Any], spec: str) -> Any:
    if "train" in splits:
        return splits["train"]
    if len(splits) == 1:
        return next(iter(splits.values()))
    raise UserError(
        f"there are several splits and none is called train: {', '.join(splits)}",
        where=spec,
        fix="give the path of one split",
    )
