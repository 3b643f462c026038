"""Models that share devices: whoever does not compute puts its memory away."""

from typing import Protocol

PARTS = ("gradients", "optimizer", "weights")
STREAM = ("open_stream", "stream", "stream_fingerprints")
# What needs no more than the weights; all else needs everything.
WEIGHTS_ONLY = (*STREAM, "logprobs", "reference_logprobs", "values", "scores")
FREE = ("offload", "reload")


class Group(Protocol):
    """What is wanted of a `WorkerGroup`."""

    role: str

    def run(self, method: str, *args: str) -> list:
        """See `WorkerGroup.run`."""


class Residents:
    """One at a time has its memory on the devices.

    Calls of a model's ranks run in the order in which they were made, so that what was started before
    is done when its memory goes.
    """

    def __init__(self) -> None:
        self._away: dict[str, set[str]] = {}
        self._groups: dict[str, Group] = {}

    def enter(self, group: Group, method: str) -> None:
        """Have the memory that a method of a model needs, and no other model's."""
        if method in FREE:
            return
        self._others_away(group)
        needed = PARTS[2:] if method in WEIGHTS_ONLY else PARTS
        away = self._away.setdefault(group.role, set())
        if missing := [part for part in needed if part in away]:
            group.run("reload", *missing)
            away.difference_update(missing)

    def keep_weights(self, group: Group) -> None:
        """Put everything away but a model's weights, where they are."""
        self.enter(group, STREAM[0])
        self._put_away(group, PARTS[:2])

    def leave(self) -> None:
        """Put everything away."""
        for group in self._groups.values():
            self._put_away(group, PARTS)

    def _others_away(self, group: Group) -> None:
        self._groups[group.role] = group
        for other in self._groups.values():
            if other is not group:
                self._put_away(other, PARTS)

    def _put_away(self, group: Group, parts: tuple[str, ...]) -> None:
        away = self._away.setdefault(group.role, set())
        if new := [part for part in parts if part not in away]:
            group.run("offload", *new)
            away.update(new)
