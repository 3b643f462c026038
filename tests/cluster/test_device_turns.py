"""Who has memory when, if models and engines share it."""

import pytest

from megarlhf.cluster import device_turns
from megarlhf.cluster.residents import PARTS, Residents
from megarlhf.config.schema import RLConfig, RolloutConfig

COLOCATED = RLConfig(rollout=RolloutConfig(placement="colocated"))
ALL = f"offload {' '.join(PARTS)}"
BACK = ALL.replace("offload", "reload")


class Log:
    """Models and engines that say what is asked of them."""

    def __init__(self):
        self.calls, self.residents, self.version = [], Residents(), None
        self.actor, self.critic = (Model(role, self) for role in ("actor", "critic"))

    def update(self, version):
        self.actor.call("stream")
        self.version = version
        self.calls.append(f"stream {version}")
        return 7

    def sleep(self):
        self.calls.append("sleep")

    def wake(self, part):
        self.calls.append(f"wake {part}")

    def take(self):
        taken, self.calls = self.calls, []
        return taken


class Model:
    def __init__(self, role, log):
        self.role, self.log, self.residents = role, log, log.residents

    def run(self, method, *parts):
        self.log.calls.append(" ".join((self.role, method, *parts)))

    def call(self, method):
        self.log.residents.enter(self, method)


@pytest.fixture
def log():
    return Log()


def of(config, log, note=print, on_gpu=True):
    return device_turns.device_turns(config, log.actor, log, note, on_gpu=on_gpu)


def test_separate_ones_put_nothing_away(log):
    made = of(RLConfig(), log)
    made.to_trainer()
    assert made.update(3) == 7
    made.to_engines()
    assert log.take() == ["stream 3"]


def test_a_step_of_colocated_ones(log):
    made = of(COLOCATED, log)
    log.actor.call("start")
    made.update(0)
    streamed = ["actor offload gradients optimizer", "stream 0", "actor offload weights"]
    assert log.take() == streamed
    made.to_engines()
    made.to_trainer()
    log.actor.call("train")
    log.actor.call("train")
    assert log.take() == ["sleep", f"actor {BACK}"]
    made.update(1)
    streamed = [
        "actor offload gradients optimizer",
        "wake weights",
        "stream 1",
        "actor offload weights",
        "wake kv_cache",
    ]
    assert log.take() == streamed
    made.to_trainer()  # to save
    log.actor.call("save")
    made.to_engines()  # the engines' weights were lost in sleep: they are streamed again
    assert log.take()[2:] == streamed
    log.actor.call("open_stream")  # an engine is replaced while the trainer's weights are away
    assert log.take() == ["actor reload weights"]


def test_models_take_turns(log):
    made = of(COLOCATED, log)
    log.actor.call("start")
    log.critic.call("start")
    assert log.take() == [f"actor {ALL}"]
    made.update(0)
    assert log.take() == [
        f"critic {ALL}",
        "actor reload weights",
        "stream 0",
        "actor offload weights",
    ]
    made.to_trainer()
    log.critic.call("values")
    log.actor.call("logprobs")
    log.actor.call("train")
    log.critic.call("train")
    assert log.take() == [
        *("sleep", "critic reload weights"),  # scoring needs no more
        *("critic offload weights", "actor reload weights", "actor reload gradients optimizer"),
        *(f"actor {ALL}", f"critic {BACK}"),
    ]


def test_cpus_say_that_nothing_is_given_back(log):
    notes = []
    of(COLOCATED, log, notes.append, on_gpu=False)
    assert "without giving back memory" in notes[0]
