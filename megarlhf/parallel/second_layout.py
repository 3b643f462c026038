"""A second model on the same ranks, laid out otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from megarlhf.parallel.groups import make_groups
from megarlhf.parallel.topology import Topology

if TYPE_CHECKING:
    from megatron.core.process_groups_config import ProcessGroupCollection


class SecondLayout:
    """Process groups of another topology, beside those that were made first.

    Megatron-Core keeps one layout in its module's variables, and looks there in many places. They
    hold the second one while `active`, the first one otherwise. Call on every rank.

    Args:
        topology: The second model's.
        seed: Of its random number generators.

    Attributes:
        groups: Its process groups.
    """

    groups: "ProcessGroupCollection"

    def __init__(self, topology: Topology, seed: int) -> None:
        from megatron.core import parallel_state

        self._kept = _variables()
        with self._exchanged():
            parallel_state.destroy_model_parallel()  # forgets the groups, does not end them
            self.groups = make_groups(topology, seed)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Whatever the second model does, it does in here."""
        with self._exchanged():
            yield

    @contextmanager
    def _exchanged(self) -> Iterator[None]:
        from megatron.core import parallel_state, tensor_parallel

        tracker = tensor_parallel.get_cuda_rng_tracker()
        first, states = _variables(), tracker.get_states()
        vars(parallel_state).update(self._kept)
        try:
            yield
        finally:
            self._kept = _variables()
            vars(parallel_state).update(first)
            tracker.set_states(states)


def _variables() -> dict[str, Any]:
    from megatron.core import parallel_state

    return {
        name: value
        for name, value in vars(parallel_state).items()
        if name.startswith("_") and name[1:2].isupper()
    }
