"""Print what the first rank that failed said last: first_failure.py FOLDER, with the logs of a start.

Ranks fail in a chain: one has the error, the others lose their connection to it. Only the standard
library, and from Python 3.7 on, so that it runs on a node whose own Python is in a container.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path

TAIL = 25  # lines of a log where there is nothing better
# What torchrun says of a rank that a signal ended: such a rank cannot say anything itself.
SIGNALLED = re.compile(r"rank\s*: (\d+) \(local_rank: (\d+)\)\s+exitcode\s*: -(\d+) \(pid: \d+\)")
# NCCL aborts a rank that has lost another, and whoever ends a run ends its ranks.
CONSEQUENCES = {signal.SIGABRT, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}


def first_failure(folder: Path) -> str | None:
    """Who failed first and how, or None if nobody left a trace."""
    ended = _ended_by_signal(folder)
    causes = [text for number, text in ended if number not in CONSEQUENCES]
    if causes:
        return causes[0]
    return _recorded(folder) or (ended[0][1] if ended else _last_words(folder))


def _ended_by_signal(folder: Path) -> list[tuple[int, str]]:
    found = []
    for log in sorted(folder.rglob("torchrun.log")):
        for rank, local, digits in SIGNALLED.findall(log.read_text(errors="replace")):
            number = int(digits)
            logs = sorted(log.parent.glob(f"*/attempt_*/{local}/stderr.log"))
            why = " (for want of memory, if nobody did it)" if number == signal.SIGKILL else ""
            text = f"rank {rank} failed first: killed by signal {number}{why} ({log})"
            found.append((number, (_tail(logs[-1]) if logs else "") + text))
    return found


def _recorded(folder: Path) -> str | None:
    records = []
    for file in folder.rglob("error.json"):
        try:
            record = json.loads(file.read_text())
            records.append((record["time"], str(file), record))
        except (OSError, ValueError, KeyError):
            continue  # half written, or torchrun's own
    if not records:
        return None
    _, file, record = min(records)
    log = Path(file).with_name("stderr.log")
    where = f"rank {record['rank']} on {record['node']} failed first"
    if log.exists():  # Ray's driver prints into the job's own output
        where += f"; its log is {log}"
    return f"{where}\n{record['message']['message'].rstrip()}"


def _last_words(folder: Path) -> str | None:
    logs = [*sorted(folder.rglob("stderr.log")), *sorted(folder.rglob("torchrun.log"))]
    for log in logs:
        if log.stat().st_size:
            return f"the end of {log}:\n{_tail(log)}".rstrip()
    return None


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-TAIL:]
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    failure = first_failure(Path(sys.argv[1]))
    print(failure or f"no rank left a word in {sys.argv[1]}")
