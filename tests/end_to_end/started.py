"""A command that a test signals while it runs."""

import os
import subprocess
import time
import uuid
from pathlib import Path


class Started:
    """A command whose descendants are known by a mark in their environment, wherever they went."""

    def __init__(self, command: list[str]) -> None:
        mark = f"MEGARLHF_TEST_MARK={uuid.uuid4().hex}"
        self._mark = mark.encode()
        name, value = mark.split("=")
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, name: value},
        )

    def left(self) -> list[str]:
        """Command lines of descendants still alive a few seconds after the command ended."""
        for _ in range(50):
            left = [_read(folder / "cmdline").rstrip(b"\0").decode() for folder in self._marked()]
            if not left:
                break
            time.sleep(0.1)
        return left

    def named(self, part: bytes) -> int:
        """The process id of a descendant with this in its command line."""
        found = (f for f in self._marked() if part in _read(f / "cmdline"))
        return int(next(found).name)

    def count(self) -> int:
        return len(self._marked())

    def _marked(self) -> list[Path]:
        folders = [folder for folder in Path("/proc").iterdir() if folder.name.isdigit()]
        return [folder for folder in folders if self._mark in _read(folder / "environ")]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # it ended in between
        return b""
