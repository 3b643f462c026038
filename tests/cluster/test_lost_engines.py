"""Real engines that are killed or stopped, under Ray; the trainer's ranks are stand-ins."""

import os
import queue
import threading
import time
from dataclasses import replace

import pytest
import ray

from megarlhf.cluster.engine_group import EngineGroup
from megarlhf.cluster.model_groups import ModelGroups
from megarlhf.cluster.placement import placement_of
from megarlhf.cluster.ray_cluster import ray_cluster
from megarlhf.cluster.verification import verify
from megarlhf.config.schema import (
    ClusterConfig,
    ModelConfig,
    ParallelConfig,
    RLConfig,
    RolloutConfig,
    StreamConfig,
)
from megarlhf.errors import UserError
from megarlhf.rollout.settings import Sampling
from tests.cluster.streaming import KILL, STOP, StreamingWorker
from tests.rollout.engine_process import prompts_of, settings_of
from tests.rollout.models import write_engine_model

SAMPLING = Sampling(2, 1.0, 1.0, -1, 40)
PROMPTS = prompts_of([5, 6, 7], [1, 2, 3, 4, 5], [9, 8], [4])
SEEDS = [11, 12, 13, 14]


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    model = write_engine_model("llama", tmp_path_factory.mktemp("model"))
    config = RLConfig(
        model=ModelConfig(path=str(model), dtype="float32", parallel=ParallelConfig(tensor=2)),
        rollout=RolloutConfig(engines=2, timeout_s=60),
        stream=StreamConfig(verify="always", restarts=4, bucket_mib=1),
        cluster=ClusterConfig(actor_ranks=2, stream_timeout_s=4, start_timeout_s=90),
    )
    notes = []
    with ray_cluster(placement_of(config, ["actor"])) as processes:
        trainer = ModelGroups(config, processes).group(StreamingWorker, "actor")
        engines = EngineGroup(config, settings_of(model), processes, notes.append)
        engines.processes = processes
        engines.notes, engines.trainer = notes, trainer
        trainer.start()
        engines.start()
        engines.connect(trainer)
        engines.update(0)
        yield engines


def update(group, version):
    group.trainer.run("set_weights", version)
    group.update(version)


def pid_of(group, number):
    return ray.get(group.members[number].process_id.remote())


def check(group, version, restarts):
    """Both engines sample from the version's weights, and give what they gave on that version."""
    answers = group.generate(PROMPTS, SAMPLING, SEEDS)
    assert {s.policy_version for samples in answers for s in samples} == {version}
    assert verify(group.trainer, group.members, group.processes) > 0
    assert group.restarts == len(group.notes) == restarts
    return [[s.response_ids for s in samples] for samples in answers]


def test_lost_engines_are_replaced_at_every_stage(group):
    check(group, 0, restarts=0)
    pid = pid_of(group, 0)
    ray.get(group.trainer.members[1].send_signal_after.remote(KILL, pid, 5))
    update(group, 1)  # killed in the middle of it
    check(group, 1, restarts=1)
    assert "engine 0 was lost in the update to version 1" in group.notes[-1]

    pid = pid_of(group, 1)
    killer = threading.Timer(0.15, os.kill, (pid, KILL))
    killer.start()
    many = 30
    answers = group.generate(PROMPTS * many, SAMPLING, SEEDS * many)  # killed while it samples
    killer.join()
    assert "engine 1 was lost while sampling" in group.notes[-1]
    assert [[s.response_ids for s in group_] for group_ in answers] == check(group, 1, 2) * many

    pid = pid_of(group, 0)
    os.kill(pid, STOP)  # it does not die: it does not answer
    start = time.monotonic()
    update(group, 2)
    assert time.monotonic() - start < 60
    check(group, 2, restarts=3)
    assert "engine 0 was lost before the update to version 2" in group.notes[-1]
    assert not os.path.exists(f"/proc/{pid}")


def test_an_engine_that_dies_while_another_thread_samples(group, monkeypatch):
    """Only this thread may call the trainer's ranks: an update finds it before, then it repairs."""
    repairs, restarts = queue.Queue(), group.restarts

    def hand_over(repair):
        done = threading.Event()
        repairs.put((repair, done))
        assert done.wait(60)

    monkeypatch.setattr(group, "repairs", hand_over)
    many, answers = 30, []
    sampling = threading.Thread(
        target=lambda: answers.extend(group.generate(PROMPTS * many, SAMPLING, SEEDS * many))
    )
    os.kill(pid_of(group, 1), KILL)
    time.sleep(0.5)
    sampling.start()
    repair, done = repairs.get(timeout=60)
    update(group, 3)
    assert "engine 1 was lost before the update to version 3" in group.notes[-1]
    repair()
    done.set()
    sampling.join(60)
    assert group.restarts == restarts + 1
    assert {s.policy_version for s in answers[1]} == {3}
    assert [len(samples) for samples in answers] == [2] * 4 * many


def test_no_more_than_so_many_are_replaced(group, monkeypatch):
    stream = replace(group._config.stream, restarts=group.restarts)
    monkeypatch.setattr(group, "_config", replace(group._config, stream=stream))
    os.kill(pid_of(group, 0), KILL)
    time.sleep(0.5)
    with pytest.raises(UserError, match="engine 0 was lost") as caught:
        group.generate(PROMPTS, SAMPLING, SEEDS)
    assert caught.value.where == "stream.restarts"
