"""What a person sees in the terminal while a run goes on, and where its time went."""

import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from megarlhf.report.text import format_seconds

RECENT_STEPS = 20  # the ETA follows the mean duration of this many steps
CLEAR_LINE = "\r\x1b[K"


@dataclass(frozen=True)
class Column:
    """One figure of the step line: which metric, its short name, its format specification."""

    key: str
    label: str
    format: str


DEFAULT_COLUMNS = (
    Column("reward", "reward", ".3f"),
    Column("loss", "loss", ".4f"),
    Column("kl", "kl", ".4f"),
    Column("response_length", "length", ".1f"),
    Column("logprob_gap", "gap", ".1e"),
    Column("staleness_mean", "stale", ".1f"),
    Column("eval_accuracy", "held-out", ".1%"),
)


class Progress:
    """Prints one line a step and, on a terminal, a live line with the phase that runs now.

    Args:
        total_steps: Steps of the whole run.
        title: Printed first.
        stream: Where to print; standard output by default.
        columns: Figures of the step line, in order; a metric a step does not have is left out.
        done_steps: Steps an earlier process has done already (a resumed run).
    """

    def __init__(
        self,
        total_steps: int,
        title: str,
        stream: TextIO | None = None,
        *,
        columns: Sequence[Column] = DEFAULT_COLUMNS,
        done_steps: int = 0,
    ) -> None:
        self._total_steps = total_steps
        self._done_steps = done_steps
        self._columns = tuple(columns)
        self._stream = stream if stream is not None else sys.stdout
        self._live = self._stream.isatty()
        self._phase: str | None = None
        self._phase_since = 0.0
        self._step_since: float | None = None  # None until the first phase of the first step
        self._created = time.monotonic()
        self._step_seconds: dict[str, float] = {}
        self._total_seconds: dict[str, float] = {}
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self.note(title)

    @contextmanager
    def phase(self, name: str, *, setup: bool = False) -> Iterator[None]:
        """Time the block as ``name``. Inside another phase, the time is the inner one's only.

        Args:
            name: A word; the metric is ``seconds_<name>``.
            setup: A long phase that belongs to no step (loading, the final export): it counts in
                ``totals`` only, and is announced even where there is no terminal.
        """
        started = time.monotonic()
        if setup and not self._live:
            self.note(f"{name} ...")
        if not setup and self._step_since is None:
            self._step_since = started
        outer = self._switch_to(name)
        try:
            yield
        finally:
            self._switch_to(outer)
            if setup:
                self._step_seconds.pop(name, None)
                if self._step_since is not None:
                    self._step_since += time.monotonic() - started

    def seconds(self) -> dict[str, float]:
        """Seconds by phase in the current step so far: ``{"seconds_generate": 0.9, ...}``."""
        return {f"seconds_{name}": seconds for name, seconds in self._step_seconds.items()}

    def totals(self) -> dict[str, float]:
        """Seconds of each phase over this process's life: ``{"load": 12.5, "generate": 90.1}``."""
        return dict(self._total_seconds)

    def step_done(self, step: int, metrics: dict[str, float]) -> None:
        """Print the line of step ``step`` (the first is 1) and begin the next step."""
        now = time.monotonic()
        self._recent.append(now - (self._created if self._step_since is None else self._step_since))
        self._done_steps = step
        self._print(self._step_line(metrics))
        self._step_seconds.clear()
        self._step_since = now

    def note(self, text: str) -> None:
        """Print a line of its own: what is being set up, where something was written."""
        self._print(text)
        self._show_status()

    def table(self, rows: list[tuple[str, str]]) -> None:
        """Print two aligned columns, for the end of a run."""
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            self._print(f"  {name:<{width}}  {value}")

    def _switch_to(self, phase: str | None) -> str | None:
        """Book the time since the last switch on the phase that ran; returns its name."""
        now = time.monotonic()
        previous = self._phase
        if previous is not None:
            for booked in (self._step_seconds, self._total_seconds):
                booked[previous] = booked.get(previous, 0.0) + now - self._phase_since
        self._phase, self._phase_since = phase, now
        self._show_status()
        return previous

    def _step_line(self, metrics: dict[str, float]) -> str:
        figures = [
            f"{column.label} {format(metrics[column.key], column.format)}"
            for column in self._columns
            if metrics.get(column.key) is not None
        ]
        phases = [f"{name} {seconds:.1f}s" for name, seconds in self._step_seconds.items()]
        pace = [f"{format_seconds(self._seconds_per_step())}/step", *self._eta()]
        parts = [
            "  ".join([self._position(self._done_steps), *figures]),
            " ".join(phases),
            "  ".join(pace),
        ]
        return " | ".join(part for part in parts if part)

    def _position(self, step: int) -> str:
        return f"step {step:>{len(str(self._total_steps))}}/{self._total_steps}"

    def _seconds_per_step(self) -> float:
        return sum(self._recent) / len(self._recent)

    def _eta(self) -> list[str]:
        left = self._total_steps - self._done_steps
        if not self._recent or left <= 0:
            return []
        return [f"ETA {format_seconds(left * self._seconds_per_step())}"]

    def _show_status(self) -> None:
        """Redraw the live line: the phase that runs now, or nothing."""
        if not self._live:
            return
        text = ""
        if self._phase is not None:
            step = min(self._done_steps + 1, self._total_steps)
            position = [] if self._step_since is None else [self._position(step)]
            text = "  ".join([*position, f"{self._phase} ...", *self._eta()])
        # A line that wraps cannot be taken back with a carriage return.
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(CLEAR_LINE + text[:width])
        self._stream.flush()

    def _print(self, line: str) -> None:
        self._stream.write(f"{CLEAR_LINE if self._live else ''}{line}\n")
        self._stream.flush()
