"""Ray's errors about processes, in words."""

import re

from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

GONE = (RayActorError, WorkerCrashedError, NodeDiedError, LocalRayletDiedError, ObjectLostError)


def raised_there(error: RayTaskError) -> Exception:
    """What the call itself raised; Ray's error, whose text is the traceback, where that is unknown."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def what_happened(error: Exception) -> str:
    """A sentence about a process that is gone."""
    text = str(error)
    name, pid = (re.search(rf"{key}: (\w+)", text) for key in ("class_name", "pid"))
    if getattr(error, "actor_init_failed", False):  # the message ends with what it raised
        return f"a process failed while it started: {text.strip().splitlines()[-1].strip()}"
    if name and pid:
        return f"process {pid[1]} ({name[1]}) ended unexpectedly: killed, or out of memory"
    return f"a process of the run ended unexpectedly ({type(error).__name__})"
