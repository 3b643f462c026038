"""Batches drawn from a list, epoch after epoch, in an order that survives a restart."""

import hashlib
import random
from array import array
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

from megarlhf.errors import UserError


class HasTokens(Protocol):
    """Anything with token ids."""

    @property
    def token_ids(self) -> Sequence[int]:
        """Token ids."""
        ...


Item = TypeVar("Item", bound=HasTokens)


class ShuffledStream(Generic[Item]):
    """An endless stream over a list, every item once an epoch.

    The order of an epoch depends on the seed and the epoch's number only: it is the same on every
    machine, and the position is all that a checkpoint must hold.

    Args:
        items: What to draw from, at least one.
        seed: Seed of the permutations.
        shuffle: False draws in the list's order.

    Attributes:
        epoch: Epochs that are complete.
        position: Items drawn since then, fewer than ``len(items)``.

    Raises:
        ValueError: There are no items.
    """

    def __init__(self, items: Sequence[Item], *, seed: int, shuffle: bool = True) -> None:
        if not items:
            raise ValueError("a stream needs at least one item")
        self.items = items
        self.seed = seed
        self.shuffle = shuffle
        self._enter(epoch=0, position=0)

    def next_batch(self, n: int) -> list[Item]:
        """The next ``n`` items; a batch that reaches an epoch's end goes on in the next epoch.

        Raises:
            ValueError: ``n`` is less than 1.
        """
        if n < 1:
            raise ValueError(f"a batch needs at least one item, not {n}")
        batch: list[Item] = []
        while len(batch) < n:
            drawn = self._order[self.position : self.position + n - len(batch)]
            batch += [self.items[index] for index in drawn]
            self.position += len(drawn)
            if self.position == len(self.items):
                self._enter(epoch=self.epoch + 1, position=0)
        return batch

    def steps_for(self, epochs: int, n: int) -> int:
        """How many batches of ``n`` hold every item ``epochs`` times (the last may hold more)."""
        return -(-len(self.items) * epochs // n)

    def state_dict(self) -> dict[str, Any]:
        """The position and what it is a position in; JSON types only."""
        return {"epoch": self.epoch, "position": self.position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the stream that gave ``state`` stood.

        Raises:
            UserError: That stream had other items, another seed or another ``shuffle``.
        """
        for key, value in self._identity().items():
            if state[key] != value:
                raise UserError(
                    f"the checkpoint's position is for other data: its {key} is {state[key]}, "
                    f"this run's is {value}",
                    where="data",
                    fix="restore the data settings and train.seed, or start in a new output.dir",
                )
        self._enter(epoch=state["epoch"], position=state["position"])

    def _enter(self, *, epoch: int, position: int) -> None:
        self.epoch = epoch
        self.position = position
        self._order = array("q", range(len(self.items)))  # eight bytes an item
        if self.shuffle:
            random.Random(f"{self.seed}-{epoch}").shuffle(self._order)

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "shuffle": self.shuffle,
            "items": len(self.items),
            "token_hash": self._hash,
        }

    @cached_property
    def _hash(self) -> str:
        return getattr(self.items, "token_hash", None) or _token_hash(self.items)


def _token_hash(items: Sequence[HasTokens]) -> str:
    """Hash of all token ids and of where one item ends and the next begins."""
    digest = hashlib.blake2b(digest_size=16)
    for item in items:
        digest.update(array("q", [len(item.token_ids), *item.token_ids]).tobytes())
    return digest.hexdigest()
