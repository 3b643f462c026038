"""A GPU's streams at their laziest: a copy runs when somebody waits for it, and not before."""

from contextlib import contextmanager
from unittest.mock import patch

import torch


class Stream:
    """Work in order; ``run`` does as much of it as somebody has waited for."""

    def __init__(self):
        self._work, self._done = [], 0

    def add(self, work):
        self._work.append(work)

    def mark(self):
        return self, len(self._work)

    def run(self, until):
        while self._done < until:
            self._done += 1
            self._work[self._done - 1]()

    def wait_event(self, event):
        mark = event.mark  # as it is now, whatever is recorded later
        self.add(lambda: _reach(mark))

    def wait_stream(self, other):
        mark = other.mark()
        self.add(lambda: _reach(mark))


class Current(Stream):
    """Where all else runs: at once."""

    def add(self, work):
        work()


class Event:
    mark = None

    def record(self):
        self.mark = _active[-1].mark()

    def synchronize(self):
        _reach(self.mark)


def _reach(mark):
    if mark is not None:
        stream, until = mark
        stream.run(until)


_active = [Current()]


@contextmanager
def _enter(stream):
    _active.append(stream)
    try:
        yield
    finally:
        _active.pop()


@contextmanager
def late_streams():
    """torch.cuda's streams and events are these, and ``copy_(..., non_blocking=True)`` is late."""
    now = torch.Tensor.copy_

    def copy(target, source, non_blocking=False):
        if non_blocking:
            _active[-1].add(lambda: now(target, source))
        else:
            now(target, source)
        return target

    stand_ins = {
        "Stream": Stream,
        "Event": Event,
        "stream": _enter,
        "current_stream": lambda: _active[-1],
    }
    with patch.multiple(torch.cuda, **stand_ins), patch.object(torch.Tensor, "copy_", copy):
        yield
