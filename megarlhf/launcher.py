"""What a launcher asks a run, and what a run tells it: through two files named in the environment.

Between a launcher (launch/) and the ranks stand torchrun, srun or a container. Through these a signal
may arrive twice, as another signal, or not at all. A file always arrives.
"""

import json
import os
import time
from pathlib import Path

STOP = "MEGARLHF_STOP_FILE"
FAILURE = "TORCHELASTIC_ERROR_FILE"  # torchrun's own name: it reads the file too


def asked_to_stop() -> bool:
    """Whether the launcher wants the run to end after its current step."""
    return STOP in os.environ and Path(os.environ[STOP]).exists()


def tell_stopped(done: int) -> bool:
    """Tell the launcher that the run was interrupted and everything is saved.

    Args:
        done: Steps (or prompts) done so far; tells the launcher whether there was progress.

    Returns:
        Whether there is a launcher. Then the exit status must be 0, as any other is a failure to
        torchrun, which ends the ranks that are not ready yet.
    """
    if STOP not in os.environ:
        return False
    Path(os.environ[STOP]).write_text(f"{done}\n")  # each rank the same
    return True


def record_failure(text: str) -> None:
    """Write why and when this process failed, so that the first of many failures can be found.

    Args:
        text: The traceback, or the message for people.
    """
    if not os.environ.get(FAILURE):
        return
    now = time.time()
    record = {
        "message": {
            "message": text,
            "extraInfo": {"py_callstack": text, "timestamp": str(int(now))},
        },
        "time": now,
        "rank": int(os.environ.get("RANK", "0")),
        "node": os.environ.get("SLURMD_NODENAME") or os.uname().nodename,
    }
    try:
        Path(os.environ[FAILURE]).write_text(json.dumps(record))
    except OSError:
        return  # a full disk, perhaps the very failure: it is printed all the same
