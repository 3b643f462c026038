"""Rollouts made ahead of training: sampling and scoring in a thread of their own."""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from megarlhf.trainer.rollouts import Phase, Rollout
from megarlhf.trainer.staleness import staleness

FAILED = signal.SIGUSR2  # to the main thread, which may wait for ranks that train
GRACE_S, END_S = 1.0, 60.0  # for the thread to end: by itself, and once its work is taken away


class Ahead:
    """A queue of rollouts, filled at most ``steps`` steps ahead; a context manager.

    Rollout n is begun when the engines have the weights behind step n - ``steps``, or newer ones. Step
    n + 1 trains on it, so no token is older than ``steps`` updates, and at most so many rollouts wait
    behind it.

    Everything but the making is called from the main thread. An error in the making thread interrupts
    the main one at once, as Ctrl-C does, and is raised where this context ends.

    Args:
        make: Makes the rollout of a given number; called for one after the other.
        steps: How many steps ahead.
        total: Rollouts of the whole run.
        phase: Times the main thread's waiting.
        give_up: Makes what the thread waits for fail: engines and rewards.
    """

    def __init__(
        self,
        make: Callable[[int, Phase], Rollout],
        steps: int,
        total: int,
        phase: Phase,
        give_up: Callable[[], None],
    ) -> None:
        self._make, self._steps, self._total = make, steps, total
        self._phase, self._give_up = phase, give_up
        self._changed = threading.Condition()  # held to read or change what follows
        self._ready: deque[Rollout] = deque()
        self._step = 0  # behind which the engines' weights are
        self._version = 0  # of these; steps without an update have the version of the one before
        self._errand: Callable[[], None] | None = None
        self._error: BaseException | None = None
        self._ended = self._deaf = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Ahead":
        self._before = signal.signal(FAILED, self._interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._change():
            self._ended = True
        if self._thread is not None:
            self._thread.join(GRACE_S)
            if self._thread.is_alive():
                self._give_up()
                self._thread.join(END_S)
        signal.signal(FAILED, self._before)
        if kind is KeyboardInterrupt and self._error is not None:
            raise self._error from None

    # -- the main thread --------------------------------------------------------------------------

    def start(self, number: int) -> None:
        """Begin to make rollouts, from this one on; the engines have the weights of that version."""
        self._step = self._version = number
        numbers = range(number, self._total)
        self._thread = threading.Thread(target=self._work, args=(numbers,), daemon=True)
        self._thread.start()

    def take(self, number: int) -> Rollout:
        """The rollout to train on now, when it is there.

        Returns:
            With further metrics: `staleness`; ``queue_length``, rollouts that wait behind it;
            ``sampler_seconds_*``, its times in the other thread: ``generate``, ``reward``, and
            ``wait``, for weights new enough to begin.
        """
        with self._phase("wait"):
            while (rollout := self._next()) is None:
                self._run_errand()
        assert rollout.number == number
        rollout.metrics |= staleness(rollout.groups, self._version)
        return rollout

    def has_weights(self, step: int, version: int) -> None:
        """Say that the engines now have the weights of after this step, and their version."""
        with self._change():
            self._step, self._version = step, version

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Hold back the other thread's errors until the next `take`: a checkpoint is being written."""
        self._deaf = True
        try:
            yield
        finally:
            self._deaf = False

    def on_main_thread(self, work: Callable[[], None]) -> None:
        """Run something that calls the trainer's ranks, while they are at rest.

        Called from the other thread, it waits until the main thread has trained and waits for a rollout.
        """
        if threading.current_thread() is not self._thread:
            work()
            return
        with self._change():
            self._errand = work
            self._changed.notify_all()
            self._wait_for(lambda: self._errand is None)

    def _next(self) -> Rollout | None:
        """The next rollout; None where there is an errand to run first."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._errand or self._ready)
            if self._error is not None:
                self._deaf = True  # the signal may be still to come
                raise self._error
            if self._errand is not None:
                return None
            rollout = self._ready.popleft()
            rollout.metrics["queue_length"] = float(len(self._ready))
            return rollout

    def _run_errand(self) -> None:
        assert self._errand is not None
        self._errand()
        with self._change():
            self._errand = None

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        # Ray hands on this exception out of its waiting, and no other.
        if self._error is not None and not self._ended and not self._deaf:
            raise KeyboardInterrupt

    # -- the other thread -------------------------------------------------------------------------

    def _work(self, numbers: range) -> None:
        try:
            for number in numbers:
                seconds: dict[str, float] = {}
                phase = _timed_into(seconds)
                with phase("wait"), self._changed:
                    self._wait_for(lambda oldest=number - self._steps: self._step >= oldest)
                rollout = self._make(number, phase)
                rollout.metrics |= seconds
                with self._change():
                    self._ready.append(rollout)
        except _Ended:
            return
        except BaseException as error:
            with self._change():
                if self._ended:  # it was made to fail
                    return
                self._error = error
            signal.pthread_kill(threading.main_thread().ident, FAILED)

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        self._changed.wait_for(lambda: self._ended or condition())
        if self._ended:
            raise _Ended

    @contextmanager
    def _change(self) -> Iterator[None]:
        with self._changed:
            yield
            self._changed.notify_all()


class _Ended(Exception):
    """The run is over: nobody wants this rollout."""


def _timed_into(seconds: dict[str, float]) -> Phase:
    @contextmanager
    def phase(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        key = f"sampler_seconds_{name}"
        seconds[key] = seconds.get(key, 0.0) + time.perf_counter() - began

    return phase
