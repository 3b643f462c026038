"""Directories that appear under their name only when they are whole."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from megarlhf.errors import UserError
from megarlhf.models.weights.row_files import full_disk_is_an_error


class NewFile(Protocol):
    """A file that is to be written: tensors, and what stands between them."""

    @property
    def file(self) -> str:
        """Its name."""

    @property
    def nbytes(self) -> int:
        """Its size."""

    @property
    def fixed(self) -> Iterable[tuple[int, bytes]]:
        """What is in it beside the tensors' bytes, and where."""


def partial_of(directory: Path) -> Path:
    """Where a directory is written until it is whole."""
    return directory.parent / f"{directory.name}.partial"


def begin(directory: Path) -> Path:
    """An empty place to write a directory; what an earlier attempt left there is removed."""
    partial = partial_of(directory)
    if partial.exists():
        with claimed(directory):
            shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


@contextlib.contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Be the only one to write to `partial_of` a directory, which exists; for as long as this lasts.

    Raises:
        UserError: Another process does.
    """
    partial = partial_of(directory)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        _lock(descriptor, partial)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, partial: Path) -> None:
    """Goes with the process, however it ends; some network disks have no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            "another process is writing there",
            where=str(partial),
            fix="wait for it, or choose another directory",
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
            raise


def create(directory: Path, files: Sequence[NewFile]) -> None:
    """Make files of their full size, in which only the tensors' bytes are missing.

    Args:
        directory: That will be published; its content goes to `partial_of` it.
        files: Which.

    Raises:
        UserError: There is no room for them.
    """
    check_space(directory, sum(file.nbytes for file in files))
    partial = begin(directory)
    with full_disk_is_an_error(directory):
        for new in files:
            with (partial / new.file).open("wb") as opened:
                opened.truncate(new.nbytes)
                for offset, content in new.fixed:
                    opened.seek(offset)
                    opened.write(content)


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
            f"there is no space for {nbytes / 1e6:,.1f} MB: {free / 1e6:,.1f} MB are free",
            where=str(directory),
            fix="free space or choose another disk; what was there before is untouched",
        )


def publish(directory: Path) -> None:
    """Give what was written beside a directory its name, in place of what had it before.

    Killed at any moment it leaves the old content or none under the name; the old one is then
    beside it, with ``.previous`` behind its name.
    """
    previous = directory.with_name(directory.name + ".previous")
    with full_disk_is_an_error(directory):
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
