"""The directory of a run: whose it is, its checkpoints, and that only one process writes to it."""

import fcntl
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from megarlhf.config.settings import to_dict
from megarlhf.config.yaml_text import to_yaml
from megarlhf.errors import UserError
from megarlhf.report.jsonl import replace_file
from megarlhf.trainer.run_identity import differences

BEST = "best.json"  # in a checkpoint: it was the best when it was made, and why

# What may be there before the run is: the lock, the launcher's logs, rows that were tokenized for it.
TOKENIZED = "tokenized"
NOT_OURS = ("run.lock", "logs", TOKENIZED)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint.

    Attributes:
        directory: Holds the distributed checkpoint and ``trainer.json``.
        state: What the trainer stored: step, data position, counters.
    """

    directory: Path
    state: dict[str, Any]


class RunDirectory:
    """Claims ``output.dir`` for one run (and one process); use as a context manager.

    Args:
        command: ``rl``, ``sft``, ...
        config: The run's configuration.

    Raises:
        UserError: The directory holds another run's files, or another process is writing there.
    """

    def __init__(self, command: str, config: Any) -> None:
        self.path = Path(config.output.dir)
        self._keep = config.train.keep_checkpoints
        self._identity = {"command": command, "config": to_dict(config)}
        self._defaults = to_dict(type(config)())
        self._resume = config.train.resume
        self._text = to_yaml(config)

    def __enter__(self) -> "RunDirectory":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # Opened for the whole run: the lock goes with the process, however it ends.
            self._lock = (self.path / "run.lock").open("w")
        except OSError as error:
            raise UserError(
                f"cannot write to the output directory: {error.strerror}",
                where=str(self.path),
                fix="set output.dir to a directory that you can write to",
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UserError(
                "another process is writing to this output directory",
                where=str(self.path),
                fix="wait for it, or set output.dir to another directory",
            ) from None
        try:
            self._check_owner()
        except UserError:
            self._lock.close()
            raise
        _write(self.path / "run.json", self._identity)  # cut short, nobody could go on
        (self.path / "config.yaml").write_text(self._text)
        for unfinished in ("*.partial", "*.removed"):
            for leftover in self._checkpoints.glob(unfinished):
                shutil.rmtree(leftover)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.close()

    def newest_checkpoint(self) -> Checkpoint | None:
        """The checkpoint to go on from, if there is one."""
        found = self._complete()
        if not found:
            return None
        fix = f"remove {found[-1]}, and the run goes on from the checkpoint before"
        return Checkpoint(found[-1], _read(found[-1] / "trainer.json", fix))

    def finished_summary(self, total_steps: int) -> dict[str, Any] | None:
        """The summary of this run, if it has done all its steps already."""
        file = self.path / "summary.json"
        newest = self.newest_checkpoint()
        if newest is None or newest.state["step"] < total_steps or not file.is_file():
            return None
        summary = _read(file, f"remove {file}, and the same command writes it again")
        return summary if summary["steps"] >= total_steps else None  # else it is of a shorter run

    def begin_checkpoint(self, step: int) -> Path:
        """An empty directory to write the checkpoint of ``step`` into."""
        directory = self._checkpoints / f"step-{step:08d}.partial"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        return directory

    def commit_checkpoint(
        self, directory: Path, state: dict[str, Any], best: dict[str, Any] | None = None
    ) -> Path:
        """Declare a written checkpoint whole, and remove the oldest ones.

        Until this returns, the checkpoints before it remain.

        Args:
            directory: From `begin_checkpoint`.
            state: What the trainer stores.
            best: What `mark_best` notes, if it is the best so far.
        """
        if best is not None:
            _write(directory / BEST, {"step": state["step"], **best})
        _write(directory / "trainer.json", state)
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
        _write(self._checkpoints / f"step-{step:08d}" / BEST, {"step": step, **record})
        self._remove_old()

    def best(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that was marked, if there is one, and its record."""
        marked = [
            directory / BEST for directory in self._complete() if (directory / BEST).is_file()
        ]
        if not marked:
            return None
        directory = marked[-1].parent
        return directory, _read(marked[-1], f"remove {directory}")

    def _remove_old(self) -> None:
        best = self.best()
        for old in self._complete()[: -self._keep]:
            if best is None or old != best[0]:
                _remove(old)

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def _complete(self) -> list[Path]:
        return sorted(file.parent for file in self._checkpoints.glob("step-*[0-9]/trainer.json"))

    def _check_owner(self) -> None:
        file = self.path / "run.json"
        drafts = self.path.glob(".run.json.*.tmp")  # of a run that was killed as it began
        ours = {*NOT_OURS, *(draft.name for draft in drafts)}
        others = [entry for entry in self.path.iterdir() if entry.name not in ours]
        if not file.is_file():
            if others:
                raise UserError(
                    f"the output directory is not empty ({others[0].name}, ...) and no run of ours",
                    where=str(self.path),
                    fix="set output.dir to a new directory",
                )
            return
        if not self._resume:
            raise UserError(
                "the output directory holds a run and train.resume is false",
                where=str(self.path),
                fix="set output.dir to a new directory, or train.resume=true to go on",
            )
        before = _read(file, "set output.dir to a new directory")
        if before["command"] != self._identity["command"]:
            raise UserError(
                f"the output directory belongs to a run of '{before['command']}'",
                where=str(self.path),
                fix="set output.dir to a new directory",
            )
        changed = differences(before["config"], self._identity["config"], self._defaults)
        if changed:
            raise UserError(
                f"the output directory belongs to another run; different are: {'; '.join(changed)}",
                where=str(self.path),
                fix="set output.dir to a new directory, or restore these settings to go on",
            )


def _write(file: Path, content: dict[str, Any]) -> None:
    replace_file(file, (json.dumps(content, indent=2) + "\n").encode())


def _remove(checkpoint: Path) -> None:
    """Killed in between, it is none any more: half of one must not pass for a whole one."""
    shutil.rmtree(checkpoint.rename(checkpoint.with_suffix(".removed")))


def _read(file: Path, fix: str) -> dict[str, Any]:
    """What a run has noted; it is damaged only where a disk was."""
    try:
        found = json.loads(file.read_text())
    except ValueError as error:  # of JSON or of UTF-8
        raise UserError(f"does not parse: {error}", where=str(file), fix=fix) from None
    return found
