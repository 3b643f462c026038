"""How work is dealt out and answers are put together; no Ray process is started."""

import os
import signal
from types import SimpleNamespace

import pytest

from megarlhf.cluster import engine_group, ray_cluster, worker_group
from megarlhf.cluster.engine_group import EngineGroup
from megarlhf.cluster.worker_group import WorkerGroup


class Remote:
    """A method of an actor: what it would compute is the reference itself."""

    def __init__(self, function):
        self.remote = function


def group(cls, members):
    made = cls.__new__(cls)  # its constructor would start actors
    made.members = members
    return made


@pytest.mark.parametrize("engines", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 12])
def test_every_prompt_is_answered_once_with_its_own_seed_and_in_order(monkeypatch, engines, count):
    monkeypatch.setattr(engine_group, "wait_for_all", list)
    asked = []

    def generate(prompts, sampling, seeds):
        asked.append(len(prompts))
        assert sampling == "sampling"
        return [[f"{p} with {seed}"] for p, seed in zip(prompts, seeds, strict=True)]

    members = [SimpleNamespace(generate=Remote(generate)) for _ in range(engines)]
    prompts, seeds = [f"p{i}" for i in range(count)], list(range(100, 100 + count))
    answers = group(EngineGroup, members).generate(prompts, "sampling", seeds)
    assert answers == [[f"p{i} with {100 + i}"] for i in range(count)]
    assert max(asked) - min(asked) <= 1


def test_an_update_counts_the_bytes_of_the_senders_only(monkeypatch):
    monkeypatch.setattr(engine_group, "wait_for_all", list)
    versions = []
    engines = [SimpleNamespace(update_weights=Remote(versions.append)) for _ in range(2)]
    trainer = SimpleNamespace(call=lambda method: [10, 20, 30])
    assert group(EngineGroup, engines).update(trainer, 7) == 60
    assert versions == [7, 7]


def test_shares_of_the_ranks_are_merged(monkeypatch):
    monkeypatch.setattr(worker_group, "wait_for_all", list)
    monkeypatch.setattr(worker_group.ray, "put", lambda value: value)
    members = [
        SimpleNamespace(double=Remote(lambda step, r=rank: {r: step, r + 2: 2 * step}))
        for rank in range(2)
    ]
    assert group(WorkerGroup, members).merged("double", 5) == {0: 5, 1: 5, 2: 10, 3: 10}


def test_the_first_failure_ends_the_wait(monkeypatch):
    def get(references):
        if "broken" in references:
            raise RuntimeError("broken")
        return references

    waited = []

    def wait(left, num_returns):
        waited.append(list(left))
        return left[-1:], left[:-1]  # the last one is ready first

    monkeypatch.setattr(worker_group.ray, "get", get)
    monkeypatch.setattr(worker_group.ray, "wait", wait)
    assert worker_group.wait_for_all(["a", "b"]) == ["a", "b"]
    waited.clear()
    with pytest.raises(RuntimeError):
        worker_group.wait_for_all(["never ready", "broken"])
    assert len(waited) == 1


@pytest.mark.parametrize("address", [None, "auto"])
def test_ray_is_started_here_or_joined_and_left_in_the_end(monkeypatch, address):
    calls = []
    monkeypatch.setattr(ray_cluster.ray, "init", lambda **settings: calls.append(settings))
    monkeypatch.setattr(ray_cluster.ray, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ZeroDivisionError), ray_cluster.ray_cluster(1000):
        raise ZeroDivisionError
    settings, last = calls
    assert last == "shutdown"
    started = {"address": "local", "num_cpus": 1000, "_node_ip_address": "127.0.0.1"}
    assert {key: settings.get(key) for key in started} == (
        dict.fromkeys(started) if address else started
    )


def test_sigterm_ends_a_run_that_starts_as_ctrl_c_does(monkeypatch):
    """Ray's own handlers, which are set as it starts, do not end it in order."""
    monkeypatch.setattr(
        ray_cluster.ray, "init", lambda **_: signal.signal(signal.SIGTERM, signal.SIG_IGN)
    )
    monkeypatch.setattr(ray_cluster.ray, "shutdown", lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), ray_cluster.ray_cluster(1):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
