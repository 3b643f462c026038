"""Updates between the steps of a scheduler that gives every request one token a step."""

import threading
from types import SimpleNamespace

import pytest

from megarlhf.rollout.generation import Generation

LENGTH = 30


class Scheduler:
    """Like vLLM's engine; its tokens are the version of the weights."""

    def __init__(self, begins_with=1):
        self.begins_with = begins_with  # open requests
        self.version = 0
        self.open = {}
        self.caches_reset = []
        self.in_step = threading.Lock()
        self.reached = threading.Event()  # all requests run

    def add_request(self, name, prompt, params):
        self.open[name] = []

    def abort_request(self, names):
        for name in names:
            del self.open[name]

    def reset_prefix_cache(self, reset_running_requests):
        self.caches_reset.append(reset_running_requests)

    def step(self):
        with self.in_step:
            done = []
            if len(self.open) < self.begins_with and not self.reached.is_set():
                return done
            for name, tokens in list(self.open.items()):
                tokens.append(self.version)
                if len(tokens) == LENGTH:
                    del self.open[name]
                    done.append(SimpleNamespace(request_id=name, finished=True, tokens=tokens))
            if len(self.open) == self.begins_with and all(self.open.values()):
                self.reached.set()
            threading.Event().wait(0.001)
            return done


@pytest.mark.parametrize(
    ("mode", "versions"), [("wait", [{0}]), ("abort", [{1}]), ("keep", [{0, 1}])]
)
def test_an_update_while_requests_run(mode, versions):
    scheduler = Scheduler(begins_with=4)
    generation = Generation(scheduler, mode)
    found = []
    runs = [
        threading.Thread(
            target=lambda n=n: found.append((n, generation.run(["p"] * n, [None] * n)))
        )
        for n in (1, 3)
    ]
    for run in runs:
        run.start()
    assert scheduler.reached.wait(20)
    with generation.paused():
        assert not scheduler.in_step.locked()
        scheduler.version = 1
    for run in runs:
        run.join(timeout=10)
    assert sorted(n for n, _ in found) == [1, 3]
    for n, outputs in found:
        assert len(outputs) == n
        assert all(len(output.tokens) == LENGTH for output in outputs)
        assert all(output.tokens == sorted(output.tokens) for output in outputs)
        assert [{*output.tokens} for output in outputs] == versions * n
    assert scheduler.caches_reset == [mode != "wait"]
    assert scheduler.open == {}
    generation.run(["p"], [None])  # and later ones run as ever


def test_an_update_that_fails_lets_others_go_on():
    generation = Generation(Scheduler(), "wait")
    with pytest.raises(ZeroDivisionError), generation.paused():
        raise ZeroDivisionError
    assert len(generation.run(["p"], [None])) == 1


def test_begun_requests_come_back_when_they_are_finished():
    """Those that come later begin at once; an update waits for all of them."""
    scheduler = Scheduler()
    generation = Generation(scheduler, "wait")
    generation.begin("me", [("p", None, "first"), ("p", None, "second")])
    found = []

    def collect():
        while len(found) < 3:
            found.extend(generation.collect("me"))

    collecting = threading.Thread(target=collect)
    collecting.start()
    while len(scheduler.open.get("1", ())) < 3:
        threading.Event().wait(0.001)
    generation.begin("me", [("p", None, "third")])
    with generation.paused():
        assert scheduler.open == {}
        scheduler.version = 1
    collecting.join(timeout=10)
    assert [key for key, _ in found] == ["first", "second", "third"]
    assert {version for _, output in found for version in output.tokens} == {0}
    assert generation.collect("me") == []


@pytest.mark.parametrize(("mode", "versions"), [("abort", {1}), ("keep", {0, 1})])
def test_begun_requests_survive_an_update(mode, versions):
    scheduler = Scheduler(begins_with=2)
    generation = Generation(scheduler, mode)
    generation.begin("me", [("p", None, 1), ("p", None, 2)])
    found = []
    collecting = threading.Thread(target=lambda: found.extend(generation.collect("me")))
    collecting.start()
    assert scheduler.reached.wait(20)
    with generation.paused():
        scheduler.version = 1
    collecting.join(timeout=10)
    assert [{*output.tokens} for _, output in found] == [versions] * 2


def test_a_thread_that_goes_on_waits_for_what_another_has_begun():
    settled = []
    generation = Generation(Scheduler(), "wait", lambda: settled.append(threading.get_ident()))
    generation.run(["p"], [None])
    assert settled == []
    other = threading.Thread(target=generation.run, args=(["p"], [None]))
    other.start()
    other.join(20)
    assert settled == [other.ident]
    with generation.paused():
        assert settled == [other.ident, threading.get_ident()]
    generation.run(["p"], [None])
    assert len(settled) == 2
