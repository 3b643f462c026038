"""Processes that the ranks of torchrun keep: real processes, no torchrun, no models."""

import os
import signal
import threading
import time
from concurrent.futures import Future
from multiprocessing import Process
from multiprocessing.connection import Listener

import pytest

from megarlhf.cluster.host import Meeting, serve_host
from megarlhf.cluster.keepers import Keepers
from megarlhf.cluster.processes import ProcessGone, Recipe
from megarlhf.errors import UserError

KEY = b"0123456789abcdef"
PATIENCE_S = 30


class Counter:
    """Served by a child."""

    def __init__(self, start):
        if start < 0:
            raise UserError("less than nothing", where="start")
        self.number = start

    def add(self, amount):
        self.number += amount
        return self.number

    def divide(self, by):
        return self.number / by

    def echo(self, data):
        return data

    def variable(self, name):
        return os.environ.get(name)

    def die(self, number):
        os.kill(os.getpid(), number)

    def sleep(self, seconds):
        time.sleep(seconds)
        return time.monotonic()


@pytest.fixture(scope="module")
def keepers():
    """Two ranks: this process, and one that is started here."""
    with Listener(("127.0.0.1", 0), authkey=KEY) as listener:
        meeting = Meeting("127.0.0.1", listener.address[1], KEY.hex())
        other = Process(target=serve_host, args=(meeting, 1, "1", "GPU-1"))
        other.start()
        with Keepers(listener, meeting, 2, "0", "GPU-0") as keepers:
            keepers.wait(PATIENCE_S)
            yield keepers
            keepers.end_processes()
            keepers.finish()
            other.join(PATIENCE_S)
            assert other.exitcode == 0


def answer(future: Future):
    return future.result(PATIENCE_S)


def test_ranks_are_known(keepers):
    found = {n: (r.node, r.device, r.address) for n, r in keepers.ranks.items()}
    assert found == {0: ("0", "GPU-0", "127.0.0.1"), 1: ("1", "GPU-1", "127.0.0.1")}


@pytest.mark.parametrize("rank", [0, 1])
def test_calls_are_answered_in_order_and_errors_come_whole(keepers, rank, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    handle = keepers.start(rank, "Counter", Recipe(Counter, (5,), {"COLOUR": "red"}))
    calls = [handle.add.remote(amount) for amount in (1, 2, 3)]
    assert [answer(call) for call in calls] == [6, 8, 11]
    with pytest.raises(ZeroDivisionError) as caught:
        answer(handle.divide.remote(0))
    assert "in divide" in str(caught.value.__cause__)  # its traceback, over there
    assert answer(handle.variable.remote("COLOUR")) == "red"
    assert answer(handle.variable.remote("LOCAL_RANK")) is None  # it is no rank of torchrun
    keepers.kill(handle)
    with pytest.raises(ProcessGone):
        answer(handle.add.remote(1))


def test_much_travels_both_ways_at_once(keepers):
    """More than sockets hold, while the process does not read."""
    handle = keepers.start(1, "Counter", Recipe(Counter, (5,)))
    much = [bytes([n]) * 2**22 for n in range(4)]
    assert [answer(call) for call in [handle.echo.remote(data) for data in much]] == much
    keepers.kill(handle)


def test_an_object_that_cannot_be_made_says_why(keepers):
    handle = keepers.start(0, "Counter", Recipe(Counter, (-1,)))
    with pytest.raises(UserError) as caught:
        answer(handle.add.remote(1))
    assert caught.value.where == "start"
    keepers.kill(handle)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_fails_its_calls(keepers, rank):
    handle = keepers.start(rank, "Counter-7", Recipe(Counter, (5,)))
    assert answer(handle.add.remote(1)) == 6
    calls = [handle.die.remote(signal.SIGKILL), handle.add.remote(1)]
    for call in calls:
        with pytest.raises(ProcessGone, match=r"\(Counter-7\) ended unexpectedly: SIGKILL"):
            answer(call)
    keepers.kill(handle)


def test_calls_run_at_a_time_where_that_is_wanted(keepers):
    handle = keepers.start(0, "Counter", Recipe(Counter, (5,), concurrency=2))
    slow = handle.sleep.remote(1.0)
    assert answer(handle.add.remote(1)) == 6
    assert not slow.done()
    keepers.kill(handle)


def test_a_stopped_process_is_killed(keepers):
    handle = keepers.start(1, "Counter", Recipe(Counter, (5,)))
    answer(handle.add.remote(1))
    handle.die.remote(signal.SIGSTOP)
    killer = threading.Thread(target=keepers.kill, args=(handle,))
    killer.start()
    killer.join(PATIENCE_S)
    assert not killer.is_alive()
