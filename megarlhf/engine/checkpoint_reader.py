"""Reading a distributed checkpoint: nothing in its files is run, and damage is said.

Megatron's files hold pickles, which could make their reader run anything. A run's own checkpoints need
nothing but tensors and plain data.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from torch.distributed.checkpoint.api import CheckpointException

from megarlhf.errors import UserError
from megarlhf.models.weights import megatron_metadata

FAILURES = (Exception, CheckpointException)  # torch's own is no Exception
_DATA_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # whatever the caller of `torch.load` asks for


@contextlib.contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Read a checkpoint inside.

    Raises:
        UserError: It is not whole, is damaged, or holds what is no plain data, whatever torch and
            Megatron raise then.
    """
    if not (directory / megatron_metadata.LAST_FILE).is_file():
        raise UserError(
            f"not a whole checkpoint: {megatron_metadata.LAST_FILE} is missing",
            where=str(directory),
            fix=_to_go_back(directory),
        )
    try:
        # torch unpickles this file as it is: what it asks for is seen to before.
        megatron_metadata.read(directory)
        with _data_only():
            yield
    except FAILURES as error:
        raise UserError(
            f"the checkpoint cannot be read: {_reason(error)}",
            where=str(directory),
            fix=_to_go_back(directory),
        ) from error


@contextlib.contextmanager
def _data_only() -> Iterator[None]:
    before = os.environ.get(_DATA_ONLY)
    os.environ[_DATA_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_DATA_ONLY]
        else:
            os.environ[_DATA_ONLY] = before


def _reason(error: BaseException) -> str:
    if isinstance(error, UserError):
        return f"{Path(error.where or '').name} {error.what}"
    text = str(error).strip()
    if "Weights only load failed" in text:
        return "a file in it asks for more than plain data"
    return text.splitlines()[-1] if text else type(error).__name__


def _to_go_back(directory: Path) -> str:
    """What to do about a checkpoint that is no good; it may be a part of a step's."""
    whole = next(
        (d for d in (directory, *directory.parents) if d.name.startswith("step-")), directory
    )
    return f"if it is damaged remove {whole}, and the run goes on from the one before"
