"""JSON-lines files that survive a killed process and a resumed run.

Every line is an object with an integer "step". Only the last line can be incomplete: it is never
read, and the next line takes its place.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


def append(path: Path, record: dict[str, Any]) -> None:
    """Add one line; it is with the operating system when the call returns.

    NaN and infinities become null, since JSON has no word for them.
    """
    text = json.dumps(_json_ready(record), ensure_ascii=False, allow_nan=False, default=str)
    # A lone surrogate has no UTF-8; backslashreplace turns it into a JSON escape like \udc80.
    line = text.encode("utf-8", "backslashreplace") + b"\n"
    with path.open("a+b") as file:
        _end_line(file)
        file.write(line)


def read(path: Path) -> list[dict[str, Any]]:
    """All complete lines in order; empty when there is no such file."""
    return [record for _, record in _complete_lines(path)]


def truncate_after(path: Path, step: int) -> None:
    """Drop the lines of later steps and an incomplete last line, in one atomic replacement."""
    if path.exists():
        kept = [line + b"\n" for line, record in _complete_lines(path) if record["step"] <= step]
        replace_file(path, b"".join(kept))


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader, and a crash, sees the old content or the new, never a part."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:  # a full disk
        draft.unlink(missing_ok=True)
        raise


def _complete_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n"):
        record = _record(line)
        if record is not None:
            yield line, record


def _record(line: bytes) -> dict[str, Any] | None:
    """What a line says; None for one that is no record of ours, or not all of it."""
    try:
        record = json.loads(line)
    except ValueError:  # cut inside the JSON or inside a UTF-8 character
        return None
    is_ours = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if is_ours else None


def _end_line(file: BinaryIO) -> None:
    """Cut what a killed writer left of its line; a whole line that only wants its end gets it."""
    if file.seek(0, os.SEEK_END) == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    last = file.read().rsplit(b"\n", 1)[-1]
    if _record(last) is None:
        file.truncate(file.tell() - len(last))
    else:
        file.write(b"\n")


def _json_ready(value: Any) -> Any:
    """Containers, numpy and torch values as plain Python, non-finite floats as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(item) for item in value]
    return value
