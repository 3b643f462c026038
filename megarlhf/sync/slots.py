"""Where parameters lie in shared memory that the engine does not keep as they are sent.

Buckets take turns in two slots.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from megarlhf.sync.plan import Bucket

SLOTS = 2
ALIGNMENT = 64  # bytes; of each parameter in a slot


@dataclass(frozen=True)
class Places:
    """Where the parameters of a bucket lie that are not live.

    Attributes:
        turn: Number of this use of a slot, from 0.
        offsets: First byte of each parameter in the slot.
    """

    turn: int
    offsets: dict[str, int]

    @property
    def slot(self) -> str:
        """Name of the slot among the shared tensors."""
        return f"slot{self.turn % SLOTS}"


def places_of(plan: list[Bucket], staged: Mapping[str, int]) -> tuple[list[Places | None], int]:
    """The place of every bucket's staged parameters, None where there are none; and a slot's bytes.

    Args:
        plan: The buckets.
        staged: Bytes of each parameter that is not written in place.
    """
    places: list[Places | None] = []
    count = most = 0
    for bucket in plan:
        offsets, end = {}, 0
        for name in bucket.names:
            if name in staged:
                offsets[name] = end
                end += -(-staged[name] // ALIGNMENT) * ALIGNMENT
        places.append(Places(count, offsets) if offsets else None)
        count += bool(offsets)
        most = max(most, end)
    return places, most


def view(
    slot: torch.Tensor, offset: int, shape: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    """A parameter in a slot (uint8 [bytes]), from a byte offset on."""
    return slot[offset : offset + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
