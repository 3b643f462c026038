"""Where the parameters of a bucket are put together: in live memory, or in one of two slots.

In a slot lies what the engine does not keep as it is sent. Buckets take turns in them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from megarlhf.sync.landing import Landing
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


class Targets:
    """Live memory and slots of one worker.

    Args:
        plan: The buckets.
        landing: The worker's parameters.
        dtype: Of the elements that are sent.
        in_place: Whether live memory can be written at all.

    Attributes:
        live: Names of the parameters that are written in place.
        staged: Shapes of the others.
        padded: Those of them of which some elements come from nowhere.
    """

    def __init__(
        self, plan: list[Bucket], landing: Landing, dtype: torch.dtype, *, in_place: bool = True
    ) -> None:
        names = [name for bucket in plan for name in bucket.names]
        self._landing, self._dtype = landing, dtype
        self.live = [name for name in names if in_place and landing.is_direct(name, dtype)]
        self.staged = {name: landing.shape(name) for name in names if name not in set(self.live)}
        self.padded = {name for name in self.staged if landing.has_padding(name)}
        sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in self.staged.items()}
        places, self._most = places_of(plan, sizes)
        self._places = {id(bucket): place for bucket, place in zip(plan, places, strict=True)}

    def new_slots(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Memory of the slots (uint8 [bytes]); none where all is written in place."""
        return {
            f"slot{slot}": torch.zeros(self._most, dtype=torch.uint8, device=device)
            for slot in range(SLOTS if self._most else 0)
        }

    def uses_slot(self, bucket: Bucket) -> bool:
        """Whether any of the bucket's parameters is staged."""
        return self._places[id(bucket)] is not None

    def of(self, bucket: Bucket, slots: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The bucket's parameters."""
        places, found = self._places[id(bucket)], {}
        for name in bucket.names:
            if name in self.staged:
                shape = self.staged[name]
                found[name] = view(slots[places.slot], places.offsets[name], shape, self._dtype)
            else:
                found[name] = self._landing.live(name).data
        return found

    def clear(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Zero those that have padding: who had the slot before left something there."""
        for name in self.padded & parameters.keys():
            parameters[name].zero_()
