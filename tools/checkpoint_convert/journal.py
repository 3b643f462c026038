"""What of a conversion is done, kept beside its files, so that another run can go on from there.

Every process appends a line when it has written a tensor. A line says what the tensor's bytes must
hash to: whoever goes on reads them back, so a line may have reached the disk before they did.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megarlhf.errors import UserError
from megarlhf.models.weights.fingerprint import TensorPrint
from megarlhf.models.weights.row_files import StoredTensor, full_disk_is_an_error
from megarlhf.report import jsonl

_JOB, _DONE = ".conversion.json", ".converted-{rank}.jsonl"


class Journal:
    """The journal of one process.

    Args:
        directory: Of the files that are being written.
        rank: This process.
    """

    def __init__(self, directory: Path, rank: int) -> None:
        self._directory = directory
        self._file = directory / _DONE.format(rank=rank)

    def begin(self, job: Mapping[str, Any]) -> None:
        """Note what is converted from what."""
        with full_disk_is_an_error(self._directory):
            (self._directory / _JOB).write_text(json.dumps(job))

    def has_begun(self) -> bool:
        """Whether there is something to go on with."""
        return (self._directory / _JOB).is_file()

    def check(self, job: Mapping[str, Any]) -> None:
        """What was begun is the same job.

        Raises:
            UserError: It is another one.
        """
        try:
            begun = json.loads((self._directory / _JOB).read_text())
        except ValueError:
            begun = {}
        different = [key for key in job if begun.get(key) != job[key]]
        if different:
            raise UserError(
                f"the conversion that was begun there is another one ({', '.join(different)})",
                where=str(self._directory),
                fix="give the same source and layout, or begin again without --resume",
            )

    def add(self, name: str, found: TensorPrint) -> None:
        """A tensor is written."""
        line = {"name": name, "dtype": found.dtype, "shape": found.shape, "digest": found.digest}
        with full_disk_is_an_error(self._directory):
            jsonl.append(self._file, line)

    def read(self) -> dict[str, TensorPrint]:
        """What every process has written."""
        found = {}
        for file in sorted(self._directory.glob(_DONE.format(rank="*"))):
            for line in file.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:  # cut short with the process
                    continue
                found[entry["name"]] = TensorPrint(
                    entry["dtype"], tuple(entry["shape"]), entry["digest"]
                )
        return found

    def remove(self) -> None:
        """The conversion is complete."""
        for file in (*self._directory.glob(_DONE.format(rank="*")), self._directory / _JOB):
            file.unlink()


def stamps(directory: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, list[int]]:
    """Size and time of every file that holds tensors: whether it is still the same."""
    files = {run.file for tensor in tensors.values() for run in tensor.runs}
    found = {name: (directory / name).stat() for name in sorted(files)}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found.items()}
