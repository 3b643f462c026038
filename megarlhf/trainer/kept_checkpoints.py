"""The checkpoints of a run: which are whole, which is the best, which go."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megarlhf.trainer.notes import read_note, write_note

BEST = "best.json"  # in a checkpoint: it was the best when it was made, and why


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint.

    Attributes:
        directory: Holds the distributed checkpoint and ``trainer.json``.
        state: What the trainer stored: step, data position, counters.
    """

    directory: Path
    state: dict[str, Any]


class KeptCheckpoints:
    """A directory of checkpoints.

    Args:
        path: The directory; it need not be there yet.
        keep: How many of the newest stay.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self._path, self._keep = path, keep

    def clear_unfinished(self) -> None:
        """Remove what a killed run has left."""
        for unfinished in ("*.partial", "*.removed"):
            for leftover in self._path.glob(unfinished):
                shutil.rmtree(leftover)

    def newest(self) -> Checkpoint | None:
        """The checkpoint to go on from, if there is one."""
        found = self._complete()
        if not found:
            return None
        fix = f"remove {found[-1]}, and the run goes on from the checkpoint before"
        return Checkpoint(found[-1], read_note(found[-1] / "trainer.json", fix))

    def begin(self, step: int) -> Path:
        """An empty directory to write the checkpoint of ``step`` into."""
        directory = self._path / f"step-{step:08d}.partial"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        return directory

    def commit(
        self, directory: Path, state: dict[str, Any], best: dict[str, Any] | None = None
    ) -> Path:
        """Declare a written checkpoint whole, and remove the oldest ones.

        Until this returns, the checkpoints before it remain.

        Args:
            directory: From `begin`.
            state: What the trainer stores.
            best: What `mark_best` notes, if it is the best so far.
        """
        if best is not None:
            write_note(directory / BEST, {"step": state["step"], **best})
        write_note(directory / "trainer.json", state)
        final = directory.with_suffix("")
        if final.exists():
            _remove(final)
        directory.rename(final)
        self._remove_old()
        return final

    def mark_best(self, step: int, record: dict[str, Any]) -> None:
        """Keep the checkpoint of ``step``, whole already, whatever comes after it.

        The one that was marked before loses that. ``record`` says why, for `best`.
        """
        write_note(self._path / f"step-{step:08d}" / BEST, {"step": step, **record})
        self._remove_old()

    def best(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that was marked, if there is one, and its record."""
        marked = [
            directory / BEST for directory in self._complete() if (directory / BEST).is_file()
        ]
        if not marked:
            return None
        directory = marked[-1].parent
        return directory, read_note(marked[-1], f"remove {directory}")

    def _remove_old(self) -> None:
        best = self.best()
        for old in self._complete()[: -self._keep]:
            if best is None or old != best[0]:
                _remove(old)

    def _complete(self) -> list[Path]:
        return sorted(file.parent for file in self._path.glob("step-*[0-9]/trainer.json"))


def _remove(checkpoint: Path) -> None:
    """Killed in between, it is none any more: half of one must not pass for a whole one."""
    shutil.rmtree(checkpoint.rename(checkpoint.with_suffix(".removed")))
