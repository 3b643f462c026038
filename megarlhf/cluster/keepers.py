"""The ranks of torchrun as the driver knows them, and the processes that they keep for it."""

import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Listener
from types import TracebackType
from typing import Protocol

from megarlhf.cluster.calls import Handle, Line
from megarlhf.cluster.host import Host, Meeting
from megarlhf.cluster.processes import NoAnswer, Recipe

FINISH_S = (
    60.0  # in which a rank that has just started meets the driver, to be told that all is done
)


class Keeper(Protocol):
    """Starts and ends processes on a rank."""

    def start(self, number: int, name: str, environment: dict[str, str]) -> None:
        """See `Host.start`."""

    def kill(self, number: int) -> None:
        """See `Host.kill`."""


class Distant:
    """The `Host` of another rank.

    Args:
        line: To it.
    """

    def __init__(self, line: Line) -> None:
        self._line = line

    def start(self, number: int, name: str, environment: dict[str, str]) -> None:
        """See `Host.start`."""
        self._say("start", number, name, environment)

    def kill(self, number: int) -> None:
        """See `Host.kill`."""
        self._say("kill", number)

    def end(self) -> None:
        """The run is over."""
        self._say("end")

    def _say(self, *message: object) -> None:
        with suppress(OSError):  # it is gone: whoever reads the line says so
            self._line.send(message)


@dataclass(frozen=True)
class Rank:
    """A rank of torchrun.

    Attributes:
        node: torchrun's number of its node.
        device: Its GPU, as CUDA_VISIBLE_DEVICES names it.
        address: That other nodes reach it at.
        keeper: Of its processes.
    """

    node: str
    device: str
    address: str
    keeper: Keeper


class Keepers:
    """All ranks; use as a context manager.

    Args:
        listener: Where the other ranks and all processes report.
        meeting: What they are told of it.
        world: Ranks of torchrun.
        node: The driver's.
        device: The driver's.

    Attributes:
        ranks: By number; complete after `wait`.
    """

    def __init__(
        self, listener: Listener, meeting: Meeting, world: int, node: str, device: str
    ) -> None:
        self.world = world
        self._own = Host(meeting, self._ended)
        self.ranks = {0: Rank(node, device, meeting.host, self._own)}
        self._listener = listener
        self._arrived = threading.Condition()
        self._processes: dict[int, tuple[Handle, Recipe]] = {}
        self._started = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Keepers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._own.close()

    def wait(self, timeout_s: float) -> None:
        """Until every rank is here.

        Raises:
            NoAnswer: One is not.
        """
        ends = time.monotonic() + timeout_s
        with self._arrived:
            while len(self.ranks) < self.world:
                if not self._arrived.wait(ends - time.monotonic()):
                    missing = sorted(set(range(self.world)) - set(self.ranks))
                    raise NoAnswer(f"ranks {missing} of torchrun are not there")

    def finish(self) -> None:
        """Tell every rank that the run is over."""
        self.wait(FINISH_S)
        for rank in self.ranks.values():
            if isinstance(rank.keeper, Distant):
                rank.keeper.end()

    # -- processes --------------------------------------------------------------------------------

    def start(self, rank: int, name: str, recipe: Recipe) -> Handle:
        """Start a process on a rank."""
        self._started += 1
        handle = Handle(name, rank, self._started)
        self._processes[self._started] = handle, recipe
        self.ranks[rank].keeper.start(self._started, name, dict(recipe.environment))
        return handle

    def kill(self, handle: Handle) -> None:
        """End a process."""
        self._processes.pop(handle.number, None)
        self.ranks[handle.host].keeper.kill(handle.number)
        handle.lose(f"{handle.name} was ended")

    def end_processes(self) -> None:
        """End all."""
        for handle, _ in list(self._processes.values()):
            self.kill(handle)

    # -- who reports ------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                line = Line(self._listener.accept())
                peer = self._listener.last_accepted[0]
                what, number, *rest = line.receive()
            except (AuthenticationError, EOFError):
                continue  # nobody of ours
            except OSError:
                return  # the listener is closed
            if what == "child":
                if number in self._processes:
                    handle, recipe = self._processes[number]
                    handle.attach(line, recipe)
                continue
            threading.Thread(target=self._listen, args=(number, line), daemon=True).start()
            with self._arrived:
                self.ranks[number] = Rank(*rest, peer, Distant(line))
                self._arrived.notify_all()

    def _listen(self, rank: int, line: Line) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._ended(*line.receive())
        self._lose(
            (handle for handle, _ in self._processes.values() if handle.host == rank),
            f"rank {rank} of torchrun ended unexpectedly",
        )

    def _ended(self, number: int, how: str) -> None:
        if number in self._processes:
            self._lose([self._processes[number][0]], how)

    def _lose(self, handles: Iterable[Handle], why: str) -> None:
        for handle in list(handles):
            handle.lose(why)
