"""Give a model's device memory back for a while, and fill it again.

The tensors stay; their storages are emptied. So every view of them (parameters in Megatron's
buffers, main copies, shards) is whole again afterwards, with the same bits. On a machine without a
GPU the same happens, but the copies lie in the same memory: only gradients free any.
"""

from collections.abc import Iterable

import torch


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
        self._emptied: list[tuple[torch.UntypedStorage, int, torch.Tensor | None]] = []
        for storage in storages.values():
            size = storage.nbytes()
            self._emptied.append((storage, size, _copy(storage) if keep else None))
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # copies to pinned memory run beside
        for storage, _, _ in self._emptied:
            storage.resize_(0)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def nbytes(self) -> int:
        """Device memory given back, bytes."""
        return sum(size for _, size, _ in self._emptied)

    def restore(self) -> None:
        """Allocate again and copy back."""
        for storage, size, copy in self._emptied:
            storage.resize_(size)
            bytes_ = _as_bytes(storage)
            bytes_.zero_() if copy is None else bytes_.copy_(copy, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._emptied.clear()


def _as_bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.tensor([], dtype=torch.uint8, device=storage.device).set_(storage)


def _copy(storage: torch.UntypedStorage) -> torch.Tensor:
    host = torch.empty(
        storage.nbytes(), dtype=torch.uint8, device="cpu", pin_memory=torch.cuda.is_available()
    )
    return host.copy_(_as_bytes(storage), non_blocking=True)
