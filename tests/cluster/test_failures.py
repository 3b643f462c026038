"""What is said of a process that is gone; the errors are Ray's own."""

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, NodeDiedError, RayTaskError

from megarlhf.cluster import failures, ray_cluster
from megarlhf.cluster.processes import NoAnswer, ProcessGone
from megarlhf.cluster.ray_cluster import RayProcesses
from megarlhf.errors import ProcessLost, UserError

KILLED = ActorDiedError(
    ActorDiedErrorContext(class_name="VllmEngine", pid=77, actor_id=bytes(16), error_message="x")
)


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError(
        "train", "Traceback (most recent call last):\n  File ...", cause
    ).as_instanceof_cause()


@pytest.fixture
def processes(monkeypatch):
    """Ray's, where a reference is what comes of it."""

    def get(reference):
        if isinstance(reference, Exception):
            raise reference

    monkeypatch.setattr(ray_cluster.ray, "wait", lambda refs, num_returns, timeout: (refs, []))
    monkeypatch.setattr(ray_cluster.ray, "get", get)
    return RayProcesses.__new__(RayProcesses)


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (KILLED, "process 77 (VllmEngine) ended unexpectedly"),
        (NodeDiedError("node"), "ended unexpectedly (NodeDiedError)"),
        (
            ActorDiedError(RayTaskError("start", "Traceback\n  line\nValueError: no such", None)),
            "while it started: ValueError: no such",
        ),
    ],
)
def test_a_process_that_is_gone(processes, error, what):
    with pytest.raises(ProcessLost) as caught, failures.explained():
        failures.wait_for_all([error], processes)
    assert what in caught.value.what
    assert caught.value.fix
    assert caught.value.status == 3


def test_processes_that_are_not_there_in_time():
    with pytest.raises(ProcessLost, match="not ready in time"), failures.explained():
        raise NoAnswer("late")


@pytest.mark.parametrize("cause", [ZeroDivisionError("x"), UserError("wrong")])
def test_what_a_process_raised_goes_through(processes, cause):
    with pytest.raises(type(cause)) as caught, failures.explained():
        failures.wait_for_all([task_error(cause)], processes)
    assert caught.value is cause
    assert "File ..." in str(caught.value.__cause__)  # of the process that raised it


def test_a_killed_peer_is_the_culprit(processes):
    """The rank that lost it may be the first to be heard of."""
    first = RuntimeError("Connection closed by peer")
    others = ["fine", task_error(RuntimeError("so here"))]
    gone = failures.culprit(first, [*others, KILLED], processes)
    assert isinstance(gone, ProcessGone) and "77" in str(gone)
    assert failures.culprit(first, others, processes) is first
    assert failures.culprit(gone, others, processes) is gone
