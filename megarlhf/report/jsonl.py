"""JSON-lines files that survive a killed process and a resumed run.

Every line is an object with an integer "step". Only the last line can be incomplete, and an
incomplete line is never read.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def append(path: Path, record: dict[str, Any]) -> None:
    """Add one line; it is with the operating system when the call returns.

    NaN and infinities become null, since JSON has no word for them.
    """
    text = json.dumps(_json_ready(record), ensure_ascii=False, allow_nan=False, default=str)
    # A lone surrogate has no UTF-8; backslashreplace turns it into a JSON escape like \udc80.
    line = text.encode("utf-8", "backslashreplace") + b"\n"
    with path.open("a+b") as file:
        if _ends_inside_a_line(file):
            line = b"\n" + line  # a killed writer left this: its line is lost, ours is not
        file.write(line)


def read(path: Path) -> list[dict[str, Any]]:
    """All complete lines in order; empty when there is no such file."""
    return [record for _, record in _complete_lines(path)]


def truncate_after(path: Path, step: float = math.inf) -> None:
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
        try:
            record = json.loads(line)
        except ValueError:  # cut inside the JSON or inside a UTF-8 character
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield line, record


def _ends_inside_a_line(file: Any) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


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
