"""What people and programs read: a table that grows line by line, and JSON."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megarlhf.parity.compare import Comparison
from megarlhf.parity.thresholds import Thresholds

_COLUMNS = f"{'ranks':>5} {'logits':>6} {'loss':>6} {'grad':>6} {'norm':>6} {'steps':>6}"


class Table:
    """Prints a layout's name when it starts and its row when it is done.

    Args:
        names: Of all layouts, for the first column's width.
        write: Takes text without a newline.
    """

    def __init__(self, names: Sequence[str], write: Callable[[str], Any]) -> None:
        self._width = max(map(len, ("layout", *names)))
        self._write = write
        write(f"{'layout':<{self._width}} {_COLUMNS}     {'s':>5}  worst gradient\n")

    def start(self, name: str) -> None:
        """A layout begins."""
        self._write(f"{name:<{self._width}} ")

    def finish(self, row: Comparison) -> None:
        """It is measured."""
        errors = (row.logits, row.loss_error, row.gradient, row.grad_norm_error, row.steps)
        name = row.gradient_name.removeprefix("model.").removesuffix(".weight")
        self._write(
            f"{row.ranks:>5} {' '.join(map(_short, errors))} {'ok' if row.ok else 'OFF':>3} "
            f"{row.seconds:5.1f}  {name if row.gradient else '-'}\n"
        )
        for problem in row.problems:
            self._write(f"{'':<{self._width}} {problem}\n")


def _short(error: float | None) -> str:
    """Six characters: 1.2e-7 or 1e-15; 0 where not a bit differs, - where it was not measured."""
    if not error:
        return f"{'-' if error is None else '0':>6}"
    text = f"{error:.1e}".replace("e-0", "e-").replace("e+0", "e+")
    return f"{text if len(text) <= 6 else format(error, '.0e'):>6}"


def summary(rows: Sequence[Comparison], seconds: float) -> str:
    """The last line."""
    off = [row.layout for row in rows if not row.ok]
    verdict = f"{len(off)} OFF: {', '.join(off)}" if off else "all compute the same function"
    return f"{len(rows)} layouts in {seconds:.0f} s, {verdict}"


def write_json(
    file: Path,
    settings: dict[str, Any],
    thresholds: Thresholds,
    rows: Sequence[Comparison],
    failure: str | None,
) -> None:
    """Everything that was measured.

    Args:
        file: Where to.
        settings: What was asked for.
        thresholds: What counted as off.
        rows: The layouts that were finished.
        failure: Why the rest was not, if so.
    """
    content = {
        **settings,
        "thresholds": asdict(thresholds),
        "ok": failure is None and all(row.ok for row in rows),
        "failure": failure,
        "layouts": [{**asdict(row), "ok": row.ok} for row in rows],
    }
    file.write_text(json.dumps(content, indent=2) + "\n")
