"""What becomes of optimizer steps whose loss or gradient is not a finite number.

The engine skips such a step (`megarlhf.engine.finite_step`). Here its batch is kept for inspection and
a run ends that skips too many steps one after another.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.data.saved_batch import write_batch
from megarlhf.errors import UserError

SKIPPED = "skipped_steps"
DIRECTORY = "skipped"
KEPT = 16  # batches that stay on the disk, the newest


class SkippedSteps:
    """Counts one model's skipped optimizer steps.

    Args:
        directory: ``output.dir``; the batches go into ``skipped/`` there. None: write nothing, as the
            ranks do that do not own the directory.
        model: ``actor``, ``critic``, ... for names and messages.
        limit: ``train.max_skipped_steps``.
        note: Tells the person at the keyboard.
    """

    def __init__(
        self, directory: Path | None, model: str, limit: int, note: Callable[[str], None]
    ) -> None:
        self._directory, self._model, self._limit, self._note = directory, model, limit, note
        self._in_a_row = 0

    def see(
        self, name: str, sequences: Sequence[TokenSequence], metrics: Mapping[str, float]
    ) -> None:
        """Look at an optimizer step.

        Args:
            name: Of the step, e.g. ``step 12``.
            sequences: Its batch, the same on every rank.
            metrics: What the engine said of it.

        Raises:
            UserError: It was skipped, and so were the ``limit`` steps before it.
        """
        if not metrics[SKIPPED]:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        figures = {key: metrics[key] for key in ("loss", "grad_norm")}
        broken = " and ".join(key for key, value in figures.items() if not math.isfinite(value))
        what = f"{name} of the {self._model}: {broken or 'a gradient'} is not a finite number"
        where = self._keep(name, sequences, figures)
        self._note(f"{what}; skipped, its batch is in {where}")
        if self._in_a_row > self._limit:
            raise UserError(
                f"{what}, as in the {self._in_a_row - 1} before it" if self._in_a_row > 1 else what,
                where=where,
                fix="look at that batch; raise train.max_skipped_steps to go on, or begin anew with a "
                "lower optimizer.lr; the newest checkpoint in output.dir is intact, and the model was "
                "not changed since",
            )

    def _keep(
        self, name: str, sequences: Sequence[TokenSequence], figures: Mapping[str, float]
    ) -> str:
        file = (
            Path(DIRECTORY) / f"{name.replace(' ', '-').replace(',', '')}-{self._model}.safetensors"
        )
        if self._directory is not None:
            (self._directory / DIRECTORY).mkdir(exist_ok=True)
            about = {"step": name, "model": self._model, **{k: str(v) for k, v in figures.items()}}
            write_batch(self._directory / file, sequences, about)
            written = (self._directory / DIRECTORY).glob("*.safetensors")
            for old in sorted(written, key=lambda path: path.stat().st_mtime_ns)[:-KEPT]:
                old.unlink()
        return str(file if self._directory is None else self._directory / file)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._in_a_row = state["in_a_row"]


def mean_of_taken(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of several optimizer steps as one: means over those taken, and how many were skipped.

    Of a model all of whose steps were skipped, only that.
    """
    taken = [step for step in steps if not step[SKIPPED]]
    means = {
        name: math.fsum(step[name] for step in taken) / len(taken) for name in (taken or [{}])[0]
    }
    return {**means, SKIPPED: float(len(steps) - len(taken))}
