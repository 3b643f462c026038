"""Give a model's device memory back for a while, and fill it again.

The tensors stay; their storages are emptied. So every view of them (parameters in Megatron's
buffers, main copies, shards) is whole again afterwards, with the same bits. On a machine without a
GPU the same happens, but the copies lie in the same memory: only gradients free any.
"""

from collections.abc import Iterable, Iterator

import torch

from megarlhf.engine.pieces import cut

# torch pins memory in powers of two: one copy of a buffer of 9 GiB would hold 16.
BLOCK = 2**28  # bytes of the host's memory that are taken at a time


class Offloaded:
    """Emptied storages and, where their contents are needed again, copies on the host.

    Args:
        tensors: What to empty; views of one storage count once.
        keep: Copy the contents first. Without, they are zeros afterwards.
    """

    def __init__(self, tensors: Iterable[torch.Tensor], *, keep: bool) -> None:
        storages = {
            storage.data_ptr(): storage
            for tensor in tensors
            if (storage := tensor.untyped_storage()).nbytes()
        }
        self._emptied = [(storage, storage.nbytes()) for storage in storages.values()]
        self._parts = cut([size for _, size in self._emptied], BLOCK) if keep else []
        self._blocks = [_block(part[-1].place + part[-1].size) for part in self._parts]
        for content, copy in self._stretches():
            copy.copy_(content, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # copies to pinned memory run beside
        for storage, _ in self._emptied:
            storage.resize_(0)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def nbytes(self) -> int:
        """Device memory given back, bytes."""
        return sum(size for _, size in self._emptied)

    def restore(self) -> None:
        """Allocate again and copy back."""
        for storage, size in self._emptied:
            storage.resize_(size)
            if not self._parts:
                _as_bytes(storage).zero_()
        for content, copy in self._stretches():
            content.copy_(copy, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._emptied.clear()

    def _stretches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every stretch of the storages, and its copy."""
        contents = [_as_bytes(storage) for storage, _ in self._emptied]
        for part, block in zip(self._parts, self._blocks, strict=True):
            for piece in part:
                content = contents[piece.index][piece.begin : piece.end]
                yield content, block[piece.place : piece.place + piece.size]


def _block(size: int) -> torch.Tensor:
    pinned = torch.cuda.is_available()
    return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pinned)


def _as_bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.tensor([], dtype=torch.uint8, device=storage.device).set_(storage)
