"""Rows of JSON files: one object a line, or one list of objects."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megarlhf.data.rows import Row
from megarlhf.errors import UserError

BLANKS = b"\xef\xbb\xbf \t\r\n"  # a byte-order mark and white space
HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")  # an escape of JSON can make one; UTF-8 has none
ESCAPED_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # so does every emoji that is escaped


def json_rows(file: Path) -> Iterator[Row]:
    """The rows of a file; lines are read one by one, a list at once.

    Raises:
        UserError: Something cannot be read, does not parse, is no text, or a row is not an object;
            names the line or row.
    """
    try:
        yield from _list_rows(file) if _holds_list(file) else _line_rows(file)
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror}",
            where=str(file),
            fix="check the path and its rights",
        ) from None


def _holds_list(file: Path) -> bool:
    """Whether the first character that is neither blank nor a byte-order mark opens a list."""
    with file.open("rb") as stream:
        first = next((line for line in stream if line.strip(BLANKS)), b"")
    return first.lstrip(BLANKS).startswith(b"[")


def _line_rows(file: Path) -> Iterator[Row]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip(BLANKS):
                continue
            where = f"{file}:{number}"
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _unparsable(error, where) from error
            _check_whole(line, values, where)
            yield Row(_checked_object(values, where), where)


def _list_rows(file: Path) -> Iterator[Row]:
    content = file.read_bytes()
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _unparsable(error, f"{file}:{getattr(error, 'lineno', 1)}") from error
    for number, values in enumerate(entries, start=1):
        where = f"{file}, row {number}"
        _check_whole(content, values, where)
        yield Row(_checked_object(values, where), where)


def _unparsable(error: ValueError | RecursionError, where: str) -> UserError:
    """The error for text that is not JSON or nested without end, or bytes that are not UTF-8."""
    is_json = isinstance(error, json.JSONDecodeError)
    message = f"{error.msg} (column {error.colno})" if is_json else str(error)
    return UserError(
        f"does not parse as JSON: {message}",
        where=where,
        fix="a file holds one JSON object a line, or one list of objects, in UTF-8",
    )


def _check_whole(source: bytes, values: Any, where: str) -> None:
    """No text of a row holds half of a character, which no tokenizer takes."""
    if ESCAPED_HALF.search(source) and (
        half := HALF_CHARACTER.search(json.dumps(values, ensure_ascii=False))
    ):
        raise UserError(
            f"holds half of a character, \\u{ord(half[0]):04x} without its other half",
            where=where,
            fix="write the character whole, or remove the escape",
        )


def _checked_object(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise UserError(
            f"a row must be a JSON object, not {type(values).__name__}",
            where=where,
            fix='write rows as {"key": value, ...}',
        )
    return values
