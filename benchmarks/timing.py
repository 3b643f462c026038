"""Take turns: several ways to do the same work, measured in one run, as ratios."""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def take_turns(
    ways: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warmup: int = 2,
    of: Callable[[list[float]], float] = statistics.median,
) -> dict[str, float]:
    """Seconds of each way. Every round runs all of them, so that a slow spell hits all.

    Args:
        ways: What to call, by name.
        rounds: Measured calls of each.
        warmup: Calls of each before.
        of: What to take of them; the least is what is least disturbed by a machine's other work.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warmup + rounds):
        for name, run in ways.items():
            _synchronize()
            began = time.perf_counter()
            run()
            _synchronize()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - began)
    return {name: of(values) for name, values in seconds.items()}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def table(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys as a table."""
    texts = [[_text(value) for value in row.values()] for row in rows]
    lines = [list(rows[0]), *texts]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def _text(value: Any) -> str:
    return (
        f"{value:,.3g}"
        if isinstance(value, float) and value < 1000
        else (f"{value:,.0f}" if isinstance(value, float) else str(value))
    )


def write_json(path: Path | None, content: Any) -> None:
    """Where a path is given."""
    if path is not None:
        path.write_text(json.dumps(content, indent=2, default=str) + "\n")
