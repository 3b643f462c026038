"""Calls to an object in another process, over a connection: both ends."""

import contextlib
import pickle
import threading
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from megarlhf.cluster.processes import ProcessGone, Recipe, RemoteTraceback

READ_S = 5.0  # for what a process that is gone has left on its line


@dataclass(frozen=True)
class Shared:
    """An argument that is pickled once, for calls of several processes."""

    data: bytes


class Line:
    """A connection that several threads send on.

    Args:
        connection: Its other end is in a process of this run: both have shown that they know its key.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()
        self.receive, self.close = connection.recv, connection.close

    def send(self, message: Any) -> None:
        """Whole, whoever else sends."""
        with self._lock:
            self._connection.send(message)


class Handle:
    """The caller's end: ``handle.method.remote(*args)`` starts a call and returns a `Future`.

    Calls may be made before the process is up, and are sent when it is. Making one never waits: the
    process may be busy with another and read nothing, and what it answers must be read meanwhile.

    Args:
        name: Of the process, for people.
        host: Number of the rank that keeps it.
        number: Its own.
    """

    def __init__(self, name: str, host: int, number: int) -> None:
        self.name, self.host, self.number = name, host, number
        self._lock = threading.Lock()
        self._outbox: SimpleQueue[Any] = SimpleQueue()
        self._reader: threading.Thread | None = None
        self._waiting: dict[int, Future] = {}
        self._calls = 0
        self._gone: str | None = None

    def __getattr__(self, method: str) -> "_Method":
        if method.startswith("_"):
            raise AttributeError(method)
        return _Method(self, method)

    def attach(self, line: Line, recipe: Recipe) -> None:
        """The process is up: let it make its object, and send it the calls."""
        self._reader = threading.Thread(target=self._read, args=(line,), daemon=True)
        self._reader.start()
        threading.Thread(target=self._send, args=(line, recipe), daemon=True).start()

    def lose(self, why: str) -> None:
        """The process is gone: calls that it has not answered fail, and so do later ones."""
        if self._reader is not None:
            self._reader.join(READ_S)  # what it answered before counts
        with self._lock:
            self._gone = why
            waiting, self._waiting = self._waiting, {}
        self._outbox.put(None)
        for future in waiting.values():
            future.set_exception(ProcessGone(why))

    def _call(self, method: str, args: tuple) -> Future:
        future: Future = Future()
        with self._lock:
            if self._gone is None:
                self._calls += 1
                self._waiting[self._calls] = future
                self._outbox.put((self._calls, method, args))
                return future
        future.set_exception(ProcessGone(self._gone))
        return future

    def _send(self, line: Line, recipe: Recipe) -> None:
        with contextlib.suppress(OSError):  # it is gone: `lose` says so
            line.send(recipe)
            while (message := self._outbox.get()) is not None:
                line.send(message)

    def _read(self, line: Line) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, worked, value = line.receive()
                with self._lock:
                    future = self._waiting.pop(number, None)
                if future is None:
                    return  # `lose` was faster
                future.set_result(value) if worked else future.set_exception(_raised(*value))


class _Method:
    """A method of a process."""

    def __init__(self, handle: Handle, name: str) -> None:
        self._handle, self._name = handle, name

    def remote(self, *args: Any) -> Future:
        """Start a call."""
        return self._handle._call(self._name, args)


def _raised(error: Exception, text: str) -> Exception:
    error.__cause__ = RemoteTraceback(text)
    return error


def serve(line: Line) -> None:
    """The other end: make the object, answer calls until the caller is gone."""
    recipe: Recipe = line.receive()
    answer = _Answers(recipe, line)
    pool = ThreadPoolExecutor(recipe.concurrency) if recipe.concurrency > 1 else None
    with contextlib.suppress(EOFError, ConnectionResetError):
        while True:
            message = line.receive()
            pool.submit(answer, *message) if pool else answer(*message)


class _Answers:
    """Calls of one object; where it could not be made, all of them raise what that raised."""

    def __init__(self, recipe: Recipe, line: Line) -> None:
        self._line = line
        self._failure: tuple[Exception, str] | None = None
        try:
            self._object = recipe.kind(*recipe.args)
        except Exception as error:
            self._failure = _portable(error)

    def __call__(self, number: int, method: str, args: tuple) -> None:
        """Run a call and send its outcome."""
        if self._failure is not None:
            self._line.send((number, False, self._failure))
            return
        try:
            given = [pickle.loads(a.data) if isinstance(a, Shared) else a for a in args]
            outcome = True, getattr(self._object, method)(*given)
        except Exception as error:
            outcome = False, _portable(error)
        self._line.send((number, *outcome))


def _portable(error: Exception) -> tuple[Exception, str]:
    """The error and its traceback; a plain one in place of one that cannot travel."""
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}"), text
    return error, text
