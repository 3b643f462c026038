"""How work is dealt out and answers are put together; no Ray process is started."""

import os
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from megarlhf.cluster import failures, ray_cluster
from megarlhf.cluster.engine_group import EngineGroup
from megarlhf.cluster.placement import placement_of
from megarlhf.cluster.worker_group import WorkerGroup
from megarlhf.config.schema import RLConfig, RolloutConfig

MANY = placement_of(RLConfig(rollout=RolloutConfig(engines=999)), ["actor"])  # 1000 CPUs


class Remote:
    """A method of an actor: what it would compute is the reference itself."""

    def __init__(self, function):
        self.remote = function


class Asked:
    """Engines without processes; some fail the first time they are asked."""

    def __init__(self, engines, failing=()):
        self.failing, self.shares = set(failing), []
        self.members = {n: SimpleNamespace(generate=Remote(self.of(n))) for n in range(engines)}
        self.replaced = {}

    def of(self, number):
        def generate(prompts, sampling, seeds):
            self.shares.append((number, len(prompts)))
            assert sampling == "sampling"
            return [[f"{p} with {seed}"] for p, seed in zip(prompts, seeds, strict=True)]

        return generate

    def failures_of(self, calls, timeout_s):
        lost = {number: "it died" for number in calls if number in self.failing}
        return {n: found for n, found in calls.items() if n not in lost}, lost

    def replace(self, lost, when):
        self.replaced |= lost
        self.failing -= set(lost)


@pytest.mark.parametrize("engines", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 12])
@pytest.mark.parametrize("failing", [(), (0,)])
def test_every_prompt_is_answered_once_with_its_own_seed_and_in_order(engines, count, failing):
    asked = Asked(engines, failing)
    made = EngineGroup.__new__(EngineGroup)  # its constructor would start actors
    made.members, made.replace, made._config = asked.members, asked.replace, RLConfig()
    made.failures_of, made._replacing = asked.failures_of, nullcontext()
    made.repairs = lambda repair: repair()
    made._alone = False
    prompts, seeds = [f"p{i}" for i in range(count)], list(range(100, 100 + count))
    answers = made.generate(prompts, "sampling", seeds)
    assert answers == [[f"p{i} with {100 + i}"] for i in range(count)]
    shares = [share for _, share in asked.shares]
    assert max(shares) - min(shares) <= 1
    assert asked.replaced == dict.fromkeys(failing, "it died")
    again = [number for number, _ in asked.shares[engines:]]
    assert again == list(failing)  # the others were not asked twice


def test_an_engine_that_is_lost_asleep_is_replaced_by_the_next_update():
    asked, called = Asked(2, failing=[1]), []
    made = EngineGroup.__new__(EngineGroup)
    made._config, made._gone, made.failures_of = RLConfig(), {}, asked.failures_of
    made.replace, made._stream = asked.replace, lambda numbers: called.append(("stream", numbers))
    made.members = {
        number: SimpleNamespace(
            **{
                name: Remote(lambda *args, n=number, name=name: called.append((name, n, *args)))
                for name in ("sleep", "wake", "process_id")
            }
        )
        for number in range(2)
    }
    made.sleep()
    made.wake("weights")
    made.update(3)
    made.wake("kv_cache")
    assert asked.replaced == {1: "it died"}
    assert called == [
        *[("sleep", 0), ("sleep", 1), ("wake", 0, "weights"), ("process_id", 0)],
        *[("stream", [0]), ("wake", 0, "kv_cache"), ("wake", 1, "kv_cache")],
    ]


class Calls:
    """Processes whose references are their results; the last one is ready first."""

    def __init__(self, broken=()):
        self.broken, self.waited = broken, []

    def shared(self, value):
        return value

    def wait(self, references, count, timeout_s):
        self.waited.append(list(references))
        return references[-count:], references[:-count]

    def result(self, reference):
        if reference in self.broken:
            raise RuntimeError("broken")
        return reference


def test_shares_of_the_ranks_are_merged():
    made = WorkerGroup.__new__(WorkerGroup)
    made.residents, made._processes = None, Calls()
    made.members = [
        SimpleNamespace(double=Remote(lambda step, r=rank: {r: step, r + 2: 2 * step}))
        for rank in range(2)
    ]
    assert made.merged("double", 5) == {0: 5, 1: 5, 2: 10, 3: 10}


def test_the_first_failure_ends_the_wait():
    assert failures.wait_for_all(["a", "b"], Calls()) == ["a", "b"]
    calls = Calls(broken=["broken"])
    with pytest.raises(RuntimeError):
        failures.wait_for_all(["never ready", "broken"], calls)
    # Once more for a rank that is gone, which would be the cause.
    assert calls.waited == [["never ready", "broken"], ["never ready"]]


@pytest.mark.parametrize("address", [None, "auto"])
def test_ray_is_started_here_or_joined_and_left_in_the_end(monkeypatch, address):
    calls = []
    monkeypatch.setattr(ray_cluster.ray, "init", lambda **settings: calls.append(settings))
    monkeypatch.setattr(ray_cluster.ray, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(ray_cluster, "RayProcesses", lambda placement: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ZeroDivisionError), ray_cluster.ray_cluster(MANY):
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
    monkeypatch.setattr(ray_cluster, "RayProcesses", lambda placement: None)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), ray_cluster.ray_cluster(MANY):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
