"""Requests running through an engine, step by step, and updates that fall between two steps."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal


class Generation:
    """Steps the scheduler, from whichever threads want something of it.

    An update while requests run

    - ``wait``: begins when they are finished; those that come meanwhile wait for it;
    - ``abort``: ends them; they start again with the new weights, from their prompts;
    - ``keep``: lets them go on with the new weights from the token they have reached. What they have
      so far is read again, so that each token's log-probability is that of the weights that made it.

    Args:
        engine: vLLM's, its scheduler in this process.
        mode: One of the three.
        settle: Waits for all that this process has begun on its device.
    """

    def __init__(
        self,
        engine: Any,
        mode: Literal["wait", "abort", "keep"],
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine, self._mode, self._settle = engine, mode, settle
        self._thread = threading.get_ident()  # whose work the device may still be at
        self._state = threading.Condition()  # held while the engine computes, or is changed
        self._counter = (
            threading.Lock()
        )  # for these two, which are raised without holding the state
        self._wanted = 0  # threads that want the state between two steps
        self._updates = 0  # that wait or run
        self._running = 0  # calls of `run`
        self._count = 0  # of requests so far: their names
        self._open: dict[str, tuple[Any, Any]] = {}
        self._finished: dict[str, Any] = {}
        self._renamed: dict[str, str] = {}
        self._begun: dict[str, tuple[str, Any]] = {}  # not collected yet: client and key

    def run(self, requests: Sequence[Any], params: Sequence[Any]) -> list[Any]:
        """vLLM's outputs, in order."""
        with self._between_steps():
            self._state.wait_for(lambda: not self._updates)
            self._running += 1
            names = [self._add(*request) for request in zip(requests, params, strict=True)]
        try:
            while True:
                with self._state:
                    self._state.wait_for(self._may_step)
                    names = [self._current(name) for name in names]
                    if all(name in self._finished for name in names):
                        return [self._finished.pop(name) for name in names]
                    self._step()
        finally:
            with self._state:
                self._running -= 1
                self._state.notify_all()

    def begin(self, client: str, requests: Sequence[tuple[Any, Any, Any]]) -> None:
        """Add a client's requests, which `collect` gives back; each with its parameters and a key."""
        with self._between_steps():
            self._state.wait_for(lambda: not self._updates)
            for request, params, key in requests:
                self._begun[self._add(request, params)] = client, key

    def collect(self, client: str) -> list[tuple[Any, Any]]:
        """Key and output of a client's requests, as soon as some are finished; none if none is open.

        It has to be called until all are back: an update that waits for requests waits for these.
        """
        while True:
            with self._state:
                self._state.wait_for(self._may_step)
                self._begun = {self._current(name): of for name, of in self._begun.items()}
                own = [name for name, (asked_by, _) in self._begun.items() if asked_by == client]
                done = [name for name in own if name in self._finished]
                if done or not own:
                    self._state.notify_all()
                    return [(self._begun.pop(n)[1], self._finished.pop(n)) for n in done]
                self._step()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is computed meanwhile; afterwards nothing that was cached counts."""
        with self._counter:
            self._updates += 1
        with self._between_steps():
            try:
                if self._mode == "wait":
                    self._state.wait_for(self._at_rest)
                elif self._mode == "abort":
                    self._engine.abort_request(list(self._open))
                self._take_over()
                yield
                # Keys and values of the old weights must not answer.
                self._engine.reset_prefix_cache(reset_running_requests=bool(self._open))
                if self._mode == "abort":
                    self._start_again()
            finally:
                with self._counter:
                    self._updates -= 1

    @contextmanager
    def _between_steps(self) -> Iterator[None]:
        """Hold the state. A lock is not fair: those that step have to be told that it is wanted."""
        with self._counter:
            self._wanted += 1
        with self._state:
            with self._counter:
                self._wanted -= 1
            self._state.notify_all()
            try:
                yield
            finally:
                self._state.notify_all()

    def _may_step(self) -> bool:
        return not self._wanted and (self._mode == "wait" or not self._updates)

    def _at_rest(self) -> bool:
        return not self._running and self._begun.keys() <= self._finished.keys()

    def _add(self, request: Any, params: Any) -> str:
        self._count += 1
        name = str(self._count)
        self._engine.add_request(name, request, params)
        self._open[name] = (request, params)
        return name

    def _start_again(self) -> None:
        for name, request in list(self._open.items()):
            del self._open[name]
            self._renamed[name] = self._add(*request)

    def _current(self, name: str) -> str:
        while name in self._renamed:
            name = self._renamed.pop(name)
        return name

    def _take_over(self) -> None:
        """On a GPU vLLM gives each thread a stream of its own, which does not wait for another's."""
        if self._thread != threading.get_ident():
            self._settle()
            self._thread = threading.get_ident()

    def _step(self) -> None:
        self._take_over()
        for output in self._engine.step():
            if output.finished and output.request_id in self._open:
                del self._open[output.request_id]
                self._finished[output.request_id] = output
