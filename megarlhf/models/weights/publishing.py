"""Directories that appear under their name only when they are whole."""

import os
import shutil
from pathlib import Path

from megarlhf.errors import UserError


def partial_of(directory: Path) -> Path:
    """Where a directory is written until it is whole."""
    return directory.with_name(directory.name + ".partial")


def begin(directory: Path) -> Path:
    """An empty place to write a directory; what an earlier attempt left there is removed."""
    partial = partial_of(directory)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def check_space(directory: Path, nbytes: int) -> None:
    """There is room beside ``directory`` for its new content.

    Raises:
        UserError: There is not.
    """
    parent = directory.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < nbytes:
        raise UserError(
            f"there is no space for {nbytes / 1e9:.1f} GB: {free / 1e9:.1f} GB are free",
            where=str(directory),
            fix="free space or choose another disk; what was there before is untouched",
        )


def publish(directory: Path) -> None:
    """Give what was written beside a directory its name, in place of what had it before.

    Killed at any moment it leaves the old content or none under the name; the old one is then
    beside it, with ``.previous`` behind its name.
    """
    previous = directory.with_name(directory.name + ".previous")
    for file in partial_of(directory).iterdir():
        _sync(file)
    if directory.exists():
        shutil.rmtree(previous, ignore_errors=True)  # left by one that was killed
        directory.rename(previous)
    partial_of(directory).rename(directory)
    _sync(directory.absolute().parent)
    shutil.rmtree(previous, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have a file's content, or a directory's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
