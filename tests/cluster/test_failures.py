"""What is said of a process that is gone; the errors are Ray's own."""

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, GetTimeoutError, NodeDiedError, RayTaskError

from megarlhf.cluster import failures
from megarlhf.errors import ProcessLost, UserError

KILLED = ActorDiedError(
    ActorDiedErrorContext(class_name="VllmEngine", pid=77, actor_id=bytes(16), error_message="x")
)


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("train", "Traceback ...", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (KILLED, "process 77 (VllmEngine) ended unexpectedly"),
        (NodeDiedError("node"), "ended unexpectedly (NodeDiedError)"),
        (GetTimeoutError("late"), "not ready in time"),
    ],
)
def test_a_process_that_is_gone(error, what):
    with pytest.raises(ProcessLost) as caught, failures.explained():
        raise error
    assert what in caught.value.what
    assert caught.value.fix
    assert caught.value.status == 3


def test_a_process_that_fails_while_it_starts():
    error = ActorDiedError(RayTaskError("start", "Traceback\n  line\nValueError: no such", None))
    with (
        pytest.raises(ProcessLost, match="while it started: ValueError: no such"),
        failures.explained(),
    ):
        raise error


@pytest.mark.parametrize("cause", [ZeroDivisionError("x"), UserError("wrong")])
def test_what_a_process_raised_goes_through(cause):
    with pytest.raises(type(cause)), failures.explained():
        raise task_error(cause)


def test_a_killed_peer_is_the_culprit(monkeypatch):
    """The rank that lost it may be the first to be heard of."""

    def get(reference):
        if isinstance(reference, Exception):
            raise reference

    monkeypatch.setattr(failures.ray, "wait", lambda refs, num_returns, timeout: (refs, []))
    monkeypatch.setattr(failures.ray, "get", get)
    first = task_error(RuntimeError("Connection closed by peer"))
    others = ["fine", task_error(RuntimeError("so here"))]
    assert failures.culprit(first, [*others, KILLED]) is KILLED
    assert failures.culprit(first, others) is first
    assert failures.culprit(ValueError("x"), [KILLED]).args == ("x",)
