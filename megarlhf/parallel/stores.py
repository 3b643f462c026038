"""Stores through which the processes of a group find each other.

Whoever serves one listens at once, on a port that the system gives: a port that is looked for first and
taken later may be another's by then.
"""

import datetime

import torch.distributed as dist

PATIENCE_S = 1800.0  # how long a process waits for what another has to say


def serve_store(host: str, timeout_s: float = PATIENCE_S) -> dist.TCPStore:
    """Serve a store at this machine's address ``host``; see its ``port``.

    Args:
        host: The address.
        timeout_s: The longest this process waits for a key, seconds.
    """
    return dist.TCPStore(
        host,
        0,
        is_master=True,
        wait_for_workers=False,
        timeout=datetime.timedelta(seconds=timeout_s),
    )


def find_store(host: str, port: int, timeout_s: float = PATIENCE_S) -> dist.TCPStore:
    """Connect to a store that another process serves.

    Raises:
        DistError: None answers within ``timeout_s`` seconds.
    """
    return dist.TCPStore(host, port, is_master=False, timeout=datetime.timedelta(seconds=timeout_s))
