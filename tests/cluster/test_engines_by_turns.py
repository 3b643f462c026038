"""An engine that shares its GPUs with models and is lost: who has memory when it is replaced."""

from types import SimpleNamespace

import pytest

from megarlhf.cluster import engine_group
from megarlhf.cluster.engine_group import EngineGroup
from megarlhf.config.schema import RLConfig, RolloutConfig, StreamConfig
from tests.rollout.engine_process import settings_of


class Engine:
    """Says what it is asked."""

    def __init__(self, number, log):
        self._number, self._log = number, log

    def __getattr__(self, method):
        def remote(*args):
            self._log.append(" ".join((f"engine {self._number}", method, *map(str, args))))
            return SimpleNamespace(error=None, nbytes=7)

        return SimpleNamespace(remote=remote)


class Processes:
    """Whose calls are answered at once."""

    on_gpu = True

    def __init__(self, log):
        self._log = log

    def engine(self, number, recipe):
        self._log.append(f"engine {number} starts")
        return Engine(number, self._log)

    def kill(self, handle):
        pass

    def wait(self, references, count, timeout_s):
        return list(references), []

    def result(self, reference):
        return reference


class Trainer:
    def __init__(self, log):
        self._log = log

    def make_room(self):
        self._log.append("models away")

    def run(self, method, numbers):
        self._log.append(f"models {method} {numbers}")
        return [dict.fromkeys(numbers, SimpleNamespace(error=None, nbytes=7))]


@pytest.mark.parametrize("placement", ["colocated", "separate"])
def test_a_new_engine_finds_its_gpus_empty_and_meets_the_trainer_asleep(
    tmp_path, monkeypatch, placement
):
    log = []
    rollout = RolloutConfig(placement=placement, engines=2)
    config = RLConfig(rollout=rollout, stream=StreamConfig(verify="never"))
    engines = EngineGroup(config, settings_of(tmp_path), Processes(log), lambda _: None)
    links = SimpleNamespace(open=lambda new: log.append(f"links to {sorted(new)}"))
    monkeypatch.setattr(engine_group, "StreamLinks", lambda *_: links)
    engines.connect(Trainer(log))
    engines.update(3)
    log.clear()
    engines.repair({1: "it died"}, dict(engines.members))
    started = ["engine 1 starts", "engine 1 ready"]
    streamed = ["links to [1]", "engine 1 update_weights 3", "models stream [1]"]
    if placement == "separate":
        assert log == started + streamed
        return
    asleep = ["engine 1 sleep", "engine 1 wake weights"]
    assert log == [
        *("models away", *started, *asleep, *streamed),
        *("models away", "engine 1 wake kv_cache"),
    ]
