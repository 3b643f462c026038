"""What people and programs read: a table that grows line by line, and JSON."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megarlhf.parity.compare import Comparison
from megarlhf.parity.thresholds import Thresholds

_COLUMNS = (
    f"{'ranks':>5}  {'logits':>7}  {'loss':>7}  {'gradient':>8}  {'of':<36}"
    f"{'norm':>7}  {'steps':>7}  {'':>3}  {'s':>5}"
)


class Table:
    """Prints a layout's name when it starts and its row when it is done.

    Args:
        names: Of all layouts, for the first column's width.
        write: Takes text without a newline.
    """

    def __init__(self, names: Sequence[str], write: Callable[[str], Any]) -> None:
        self._width = max(map(len, ("layout", *names)))
        self._write = write
        write(f"{'layout':<{self._width}}  {_COLUMNS}\n")

    def start(self, name: str) -> None:
        """A layout begins."""
        self._write(f"{name:<{self._width}}  ")

    def finish(self, row: Comparison) -> None:
        """It is measured."""
        name = row.gradient_name.removeprefix("model.").removesuffix(".weight")
        self._write(
            f"{row.ranks:>5}  {row.logits:7.1e}  {row.loss_error:7.1e}  {row.gradient:8.1e}  "
            f"{name:<36}{row.grad_norm_error:7.1e}  "
            f"{'-' if row.steps is None else format(row.steps, '.1e'):>7}  "
            f"{'ok' if row.ok else 'OFF':>3}  {row.seconds:5.1f}\n"
        )
        for problem in row.problems:
            self._write(f"{'':<{self._width}}  {problem}\n")


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
