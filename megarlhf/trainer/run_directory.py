"""The directory of a run: whose it is, and that only one process writes to it."""

import fcntl
from pathlib import Path
from types import TracebackType
from typing import Any

from megarlhf.config.settings import to_dict
from megarlhf.config.yaml_text import to_yaml
from megarlhf.errors import UserError
from megarlhf.trainer.kept_checkpoints import KeptCheckpoints
from megarlhf.trainer.notes import read_note, write_note
from megarlhf.trainer.run_identity import differences

# What may be there before the run is: the lock, the launcher's logs, rows that were tokenized for it.
TOKENIZED = "tokenized"
NOT_OURS = ("run.lock", "logs", TOKENIZED)


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
        self.checkpoints = KeptCheckpoints(self.path / "checkpoints", config.train.keep_checkpoints)
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
        write_note(self.path / "run.json", self._identity)  # cut short, nobody could go on
        (self.path / "config.yaml").write_text(self._text)
        self.checkpoints.clear_unfinished()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.close()

    def finished_summary(self, total_steps: int) -> dict[str, Any] | None:
        """The summary of this run, if it has done all its steps already."""
        file = self.path / "summary.json"
        newest = self.checkpoints.newest()
        if newest is None or newest.state["step"] < total_steps or not file.is_file():
            return None
        summary = read_note(file, f"remove {file}, and the same command writes it again")
        return summary if summary["steps"] >= total_steps else None  # else it is of a shorter run

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
        before = read_note(file, "set output.dir to a new directory")
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
