"""Who has memory when, if trainer and engines share it."""

from dataclasses import replace

import pytest

from megarlhf.cluster import shares, turns
from megarlhf.config.schema import ClusterConfig, RLConfig, RolloutConfig
from megarlhf.errors import UserError

COLOCATED = RLConfig(rollout=RolloutConfig(placement="colocated"))


class Log:
    """Trainer and engines that say what is asked of them."""

    def __init__(self):
        self.calls = []
        self.version = None
        self.before_stream = lambda: None

    def run(self, method, *parts):
        self.calls.append(" ".join((method, *parts)))

    def update(self, version):
        self.before_stream()
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


@pytest.fixture
def log(monkeypatch):
    monkeypatch.setattr(turns, "have_gpus", lambda: True)
    return Log()


def test_separate_ones_put_nothing_away(log):
    made = turns.turns_of(RLConfig(), log, log, print)
    made.train()
    assert made.update(3) == 7
    made.sample()
    assert log.take() == ["stream 3"]


def test_a_step_of_colocated_ones(log):
    made = turns.turns_of(COLOCATED, log, log, print)
    made.update(0)
    assert log.take() == ["offload gradients optimizer", "stream 0", "offload weights"]
    made.sample()
    made.train()
    assert log.take() == ["sleep", "reload"]
    made.update(1)
    assert log.take() == [
        "offload gradients optimizer",
        "wake weights",
        "stream 1",
        "offload weights",
        "wake kv_cache",
    ]
    made.train()  # to save
    made.sample()  # weights were lost in sleep: they are streamed again
    assert log.take()[2:] == [
        "offload gradients optimizer",
        "wake weights",
        "stream 1",
        "offload weights",
        "wake kv_cache",
    ]
    log.before_stream()  # an engine is replaced while the trainer's weights are away
    assert log.take() == ["reload"]


def test_cpus_say_that_nothing_is_given_back(log, monkeypatch):
    monkeypatch.setattr(turns, "have_gpus", lambda: False)
    notes = []
    turns.turns_of(COLOCATED, log, log, notes.append)
    assert "without giving back memory" in notes[0]


def test_shares_of_gpus():
    assert shares.gpus_of_engine(RLConfig(rollout=RolloutConfig(tensor_parallel=4))) == 4
    assert shares.gpus_of_rank(RLConfig()) == 1
    assert shares.gpus_of_rank(COLOCATED) + shares.gpus_of_engine(COLOCATED) == 1
    two = replace(COLOCATED, cluster=ClusterConfig(actor_ranks=2))
    with pytest.raises(UserError) as caught:
        shares.gpus_of_engine(two)
    assert caught.value.where == "rollout.placement"
