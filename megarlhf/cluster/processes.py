"""What a run asks of whoever keeps its processes: Ray, or the ranks that torchrun started.

Both answer with handles on which ``handle.method.remote(*args)`` starts a call and returns a reference.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from megarlhf.cluster.placement import Placement

# Deprecation notices of the libraries are for their authors; errors still come through.
QUIET = {"PYTHONWARNINGS": "ignore", "TORCH_CPP_LOG_LEVEL": "ERROR"}


class ProcessGone(Exception):
    """A process ended, or did not come up; the text says which, in a sentence without a full stop."""


class RemoteTraceback(Exception):
    """The cause of an error that a call raised: its text is the traceback over there."""

    def __str__(self) -> str:
        return "\n" + super().__str__()


class NoAnswer(Exception):
    """A process did not answer in time."""


@dataclass(frozen=True)
class Recipe:
    """A process to start: an object that serves calls.

    Attributes:
        kind: The object's class; importable.
        args: Its arguments.
        environment: Variables that the process finds when it begins.
        concurrency: Calls that it runs at a time; with 1, in the order in which they were made.
    """

    kind: type
    args: tuple[Any, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    concurrency: int = 1


class Processes(Protocol):
    """Starts processes in their places and waits for what they answer.

    Attributes:
        on_gpu: Whether its machines have GPUs.
        placement: Where ranks and engines go.
    """

    on_gpu: bool
    placement: Placement

    def rank(self, role: str, rank: int, recipe: Recipe) -> Any:
        """Start a rank of a model; returns its handle at once."""

    def engine(self, number: int, recipe: Recipe) -> Any:
        """Start an engine; returns its handle at once."""

    def kill(self, handle: Any) -> None:
        """End a process now."""

    def node(self, handle: Any) -> str:
        """The node that a process is on."""

    def address(self, handle: Any) -> str:
        """The address that other nodes reach that node at."""

    def shared(self, value: Any) -> Any:
        """Wrap an argument of several calls, so that it is sent or stored only once."""

    def wait(
        self, references: Sequence[Any], count: int, timeout_s: float | None
    ) -> tuple[list[Any], list[Any]]:
        """Wait until ``count`` calls are done or the time is up; returns those done, and the others."""

    def result(self, reference: Any) -> Any:
        """What a call returned.

        Raises:
            ProcessGone: Its process ended before.
            Exception: What the call raised.
        """


class Opener(Protocol):
    """Opens the place where the processes of one run are kept."""

    def __call__(self, placement: Placement) -> AbstractContextManager[Processes]:
        """Make room for a placement; when the context ends, no process of the run is left."""
