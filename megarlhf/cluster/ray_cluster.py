"""Start Ray here or join a running cluster; end only what was started here."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from megarlhf.cluster.failures import explained

# Deprecation notices of the libraries are for their authors; errors still come through.
QUIET = {"PYTHONWARNINGS": "ignore", "TORCH_CPP_LOG_LEVEL": "ERROR"}


@contextmanager
def ray_cluster(cpus: int) -> Iterator[None]:
    """Ray for the length of a run.

    With ``RAY_ADDRESS`` set (``ray job submit`` sets it) that cluster is joined; otherwise a local
    one is started on loopback and shut down at the end. SIGTERM is as Ctrl-C until a run says
    otherwise (`trainer/stopping.py`). Only in the main thread.

    Args:
        cpus: CPUs that the local cluster offers: what the run's actors ask for. More than there are
            cores is fine, they then share them.
    """
    before = signal.getsignal(signal.SIGTERM)
    # It announces at each start that Ray's processes know each other by a token, as they should.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=True, logging_level=logging.WARNING)
    else:
        ray.init(
            address="local",
            num_cpus=max(cpus, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=True,
            logging_level=logging.WARNING,
            _node_ip_address="127.0.0.1",
        )
    # Ray's own handlers end the driver by an abort, or lose the signal while the run starts.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with explained():
            yield
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)


def have_gpus() -> bool:
    """Whether the cluster has GPUs; actors then ask for one each."""
    return ray.cluster_resources().get("GPU", 0) > 0
