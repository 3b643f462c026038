"""Tensors in GPU memory that processes of one machine share, by CUDA's handles to it.

For two processes that share a GPU, or two GPUs that reach each other's memory.
"""

import base64
from collections.abc import Mapping
from typing import Any

import torch


class CudaIpc:
    """See `mapped.Memory`."""

    # An engine that can sleep has its weights in memory of vLLM's own allocator. That has no handles of
    # this kind, and other memory behind it after each sleep.
    in_place = False

    def publish(self, tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], Any]:
        """Make handles; of memory that torch has allocated as usual."""
        described = {}
        for name, tensor in tensors.items():
            handle = tensor.data.untyped_storage()._share_cuda_()
            described[name] = {
                "handle": [_encode(part) for part in handle],
                "offset": tensor.storage_offset(),
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
            }
        return {name: tensor.data for name, tensor in tensors.items()}, described

    def attach(self, description: Any) -> dict[str, torch.Tensor]:
        """Open handles."""
        found = {}
        for name, said in description.items():
            _, *handle = (_decode(part) for part in said["handle"])
            # The first is the GPU's number in the other process, which sees others than this one.
            storage = torch.UntypedStorage._new_shared_cuda(torch.cuda.current_device(), *handle)
            values = torch.empty(0, dtype=getattr(torch, said["dtype"]), device=storage.device)
            found[name] = values.set_(storage, said["offset"], torch.Size(said["shape"]))
        return found

    def settle(self) -> None:
        """Wait for the copies of this process."""
        torch.cuda.synchronize()

    def attached(self) -> None:
        """Nothing: there is no name."""


def _encode(part: Any) -> Any:
    return {"bytes": base64.b64encode(part).decode()} if isinstance(part, bytes) else part


def _decode(part: Any) -> Any:
    return base64.b64decode(part["bytes"]) if isinstance(part, dict) else part
