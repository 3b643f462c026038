"""Ray's errors about processes, as they read for the person who runs the job."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from megarlhf.errors import ProcessLost

GONE = (RayActorError, WorkerCrashedError, NodeDiedError, LocalRayletDiedError, ObjectLostError)
GRACE_S = 5.0  # in which Ray sees that a process is gone whose peers have failed already
GO_ON = "the newest checkpoint in output.dir is intact: the same command goes on from there"


@contextmanager
def explained() -> Iterator[None]:
    """Turn what Ray raises when a process is gone, or does not start, into an error for people.

    Raises:
        ProcessLost: As said. Errors that a process raised go through unchanged.
    """
    try:
        yield
    except GetTimeoutError as error:
        raise ProcessLost(
            "the ranks and engines were not ready in time",
            where="cluster.start_timeout_s",
            fix="see that the cluster has the CPUs or GPUs that they ask for, or raise it",
        ) from error
    except RayTaskError:
        raise
    except GONE as error:
        raise ProcessLost(_what(error), fix=f"see its last output above; {GO_ON}") from error


def culprit(error: Exception, others: Sequence[Any]) -> Exception:
    """The cause of a failure: a rank whose peer was killed fails too, and may be heard of first.

    Args:
        error: What was raised first.
        others: References that were waited for with it.
    """
    if not isinstance(error, RayTaskError):
        return error
    done, _ = ray.wait(list(others), num_returns=len(others), timeout=GRACE_S)
    for reference in done:
        try:
            ray.get(reference)
        except RayTaskError:
            continue
        except GONE as gone:
            return gone
    return error


def _what(error: Exception) -> str:
    text = str(error)
    name, pid = (re.search(rf"{key}: (\w+)", text) for key in ("class_name", "pid"))
    if getattr(error, "actor_init_failed", False):  # the message ends with what it raised
        return f"a process failed while it started: {text.strip().splitlines()[-1].strip()}"
    if name and pid:
        return f"process {pid[1]} ({name[1]}) ended unexpectedly: killed, or out of memory"
    return f"a process of the run ended unexpectedly ({type(error).__name__})"
