"""Tensors in memory that processes of one machine share.

A file in /dev/shm, which is unlinked once all have it.
"""

import ctypes
import errno
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from megarlhf.errors import UserError

DIRECTORY = Path("/dev/shm")
ALIGNMENT = 64  # bytes


class SharedMemory:
    """See `mapped.Memory`; tensors move into the file."""

    in_place = True

    def publish(self, tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], Any]:
        """Move tensors into a new file, one after the other: there are never two copies of all.

        Raises:
            UserError: There is no room for them in /dev/shm.
        """
        places, end = {}, 0
        for name, tensor in tensors.items():
            places[name] = {
                "offset": end,
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
            }
            end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        self._file = DIRECTORY / f"megarlhf-{uuid.uuid4().hex}"
        _make(self._file, end)
        description = {"file": str(self._file), "bytes": end, "tensors": places}
        shared = self.attach(description)
        for name, tensor in tensors.items():
            tensor.data = shared[name].copy_(tensor.data)
        _give_back()
        return shared, description

    def attach(self, description: Any) -> dict[str, torch.Tensor]:
        """Map the file."""
        size = description["bytes"]
        memory = torch.from_file(description["file"], shared=True, size=size, dtype=torch.uint8)
        found = {}
        for name, place in description["tensors"].items():
            dtype = getattr(torch, place["dtype"])
            end = place["offset"] + math.prod(place["shape"]) * dtype.itemsize
            found[name] = memory[place["offset"] : end].view(dtype).view(place["shape"])
        return found

    def settle(self) -> None:
        """Nothing: what is written is there."""

    def attached(self) -> None:
        """Unlink the file, so that nothing is left however the processes end."""
        self._file.unlink()


def _give_back() -> None:
    """What was freed goes back to the system; glibc would keep it for this process."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _make(file: Path, size: int) -> None:
    descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        file.unlink()
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f"no room for {size / 2**20:.0f} MiB of an engine's weights",
            where=str(DIRECTORY),
            fix="make it larger (in a container: --shm-size), or set stream.transport=gloo",
        ) from None
    finally:
        os.close(descriptor)
