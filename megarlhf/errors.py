"""The errors that are meant for the person at the keyboard."""

import errno

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


class UserError(Exception):
    """Something the user can put right: says what is wrong, where, and what to do.

    Args:
        what: What is wrong, one sentence without a full stop.
        where: File (with line) or configuration key, if there is one.
        fix: What to do about it, one sentence.

    The command line prints it without a traceback and exits with status 2. It survives pickling
    with its parts, so it arrives whole from a remote process.

    Attributes:
        status: The exit status of a command that it ends.
    """

    status = 2

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  -> {self.fix}" if self.fix else text

    def __reduce__(self) -> tuple:
        return (_rebuild, (type(self), self.what, self.where, self.fix))


class ProcessLost(UserError):
    """A process of the run was killed, crashed or never came up: nothing is wrong with the input."""

    status = 3


def disk_error(error: BaseException) -> OSError | None:
    """The full or failing disk behind an error of this process or, in Ray's wrapper, of another.

    torch raises a RuntimeError of its own while it handles the disk's.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _DISK:
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__ or seen.__context__
    return None


def cannot_write(reason: OSError, where: str | None = None) -> UserError:
    """The error to show the user for a failing disk."""
    return UserError(
        f"cannot write: {reason.strerror}",
        where=where or reason.filename,
        fix="make room on that disk; a checkpoint that was whole before still is, and the same "
        "command goes on from it",
    )


def _rebuild(kind: type[UserError], what: str, where: str | None, fix: str | None) -> UserError:
    return kind(what, where=where, fix=fix)
