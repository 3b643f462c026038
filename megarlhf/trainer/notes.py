"""JSON files in which a run notes what it is and how far it is."""

import json
from pathlib import Path
from typing import Any

from megarlhf.errors import UserError
from megarlhf.report.jsonl import replace_file


def write_note(file: Path, content: dict[str, Any]) -> None:
    """Write it whole or, if that fails, leave the one before."""
    replace_file(file, (json.dumps(content, indent=2) + "\n").encode())


def read_note(file: Path, fix: str) -> dict[str, Any]:
    """Read it; it is damaged only where a disk was.

    Args:
        file: The note.
        fix: What to do where it does not parse.

    Raises:
        UserError: It does not parse.
    """
    try:
        found = json.loads(file.read_text())
    except ValueError as error:  # of JSON or of UTF-8
        raise UserError(f"does not parse: {error}", where=str(file), fix=fix) from None
    return found
