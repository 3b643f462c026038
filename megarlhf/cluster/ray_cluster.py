"""Ray keeps the processes: start it here or join a running cluster; end only what was started here."""

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from megarlhf.cluster import ray_errors
from megarlhf.cluster.failures import explained
from megarlhf.cluster.placement import Gang, Placement
from megarlhf.cluster.processes import QUIET, ProcessGone, Recipe, RemoteTraceback
from megarlhf.cluster.ray_bundles import Bundles

# With whole devices of others: Ray must not hide them.
AS_GIVEN = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}


@contextmanager
def ray_cluster(placement: Placement) -> Iterator["RayProcesses"]:
    """Ray for the length of a run.

    With ``RAY_ADDRESS`` set (``ray job submit`` sets it) that cluster is joined; otherwise a local
    one is started on loopback and shut down at the end. SIGTERM is as Ctrl-C until a run says
    otherwise (`trainer/stopping.py`). Only in the main thread.

    Args:
        placement: What the run will start. A local cluster without GPUs offers the CPUs that it asks
            for: more than there are cores is fine, processes then share them.
    """
    before = signal.getsignal(signal.SIGTERM)
    # It announces at each start that Ray's processes know each other by a token, as they should.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=True, logging_level=logging.WARNING)
    else:
        ray.init(
            address="local",
            num_cpus=max(placement.cpus, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=True,
            logging_level=logging.WARNING,
            _node_ip_address="127.0.0.1",
        )
    # Ray's own handlers end the driver by an abort, or lose the signal while the run starts.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with explained():
            yield RayProcesses(placement)
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)


class RayProcesses:
    """See `Processes`: an actor each.

    Args:
        placement: Where they go.
    """

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.on_gpu = ray.cluster_resources().get("GPU", 0) > 0
        if self.on_gpu and (gang := placement.host_of_engines):
            placement.devices_of_engine(0, gang.ranks)  # they fit
        self._bundles = Bundles(placement, on_gpu=self.on_gpu)
        self._holders: dict[tuple[Gang, int], Any] = {}  # the first process on each device

    def rank(self, role: str, rank: int, recipe: Recipe) -> Any:
        """See `Processes.rank`."""
        gang = self.placement.gang_of(role)
        where = self._bundles.strategy(gang, rank)
        if role == gang.roles[0].name:
            cpus = 0 if self.on_gpu else self.placement.cpus_per_rank
            own = {"num_gpus": int(self.on_gpu), "num_cpus": cpus}
            handle = self._start(recipe, {**own, "scheduling_strategy": where})
            self._holders[gang, rank] = handle
            return handle
        return self._start_on(recipe, gang, [rank])

    def engine(self, number: int, recipe: Recipe) -> Any:
        """See `Processes.engine`."""
        ranks, gang = self.placement.engine_ranks, self.placement.host_of_engines
        if not self.on_gpu:
            return self._start(recipe, {"num_cpus": float(ranks)})
        if gang is None:
            return self._start(recipe, {"num_gpus": float(ranks)})
        return self._start_on(recipe, gang, self.placement.devices_of_engine(number, gang.ranks))

    def _start_on(self, recipe: Recipe, gang: Gang, devices: list[int]) -> Any:
        """On devices that other processes hold."""
        environment = {}
        if self.on_gpu:
            holders = [self._holders[gang, device] for device in devices]
            asked = [holder.__ray_call__.remote(_gpus) for holder in holders]
            found = [gpu for gpus in ray.get(asked) for gpu in gpus]
            environment = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, found)), **AS_GIVEN}
        where = self._bundles.strategy(gang, devices[0])
        options = {"num_cpus": 0, "num_gpus": 0, "scheduling_strategy": where}
        return self._start(recipe, options, environment)

    def _start(
        self, recipe: Recipe, options: dict[str, Any], environment: dict[str, str] | None = None
    ) -> Any:
        variables = {**QUIET, **recipe.environment, **(environment or {})}
        remote = ray.remote(recipe.kind).options(
            runtime_env={"env_vars": variables}, max_concurrency=recipe.concurrency, **options
        )
        return remote.remote(*recipe.args)

    def kill(self, handle: Any) -> None:
        """See `Processes.kill`."""
        ray.kill(handle)

    def node(self, handle: Any) -> str:
        """See `Processes.node`."""
        return self.result(handle.__ray_call__.remote(_node))

    def address(self, handle: Any) -> str:
        """See `Processes.address`."""
        return self.result(handle.__ray_call__.remote(_address))

    def shared(self, value: Any) -> Any:
        """See `Processes.shared`: in the object store."""
        return ray.put(value)

    def wait(
        self, references: Sequence[Any], count: int, timeout_s: float | None
    ) -> tuple[list[Any], list[Any]]:
        """See `Processes.wait`."""
        return ray.wait(list(references), num_returns=count, timeout=timeout_s)

    def result(self, reference: Any) -> Any:
        """See `Processes.result`."""
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise ray_errors.raised_there(error) from RemoteTraceback(str(error))
        except ray_errors.GONE as error:
            raise ProcessGone(ray_errors.what_happened(error)) from error


def _gpus(_: Any) -> list[str]:
    """Runs in an actor: the GPUs that it was given, as CUDA_VISIBLE_DEVICES names them."""
    return [str(gpu) for gpu in ray.get_gpu_ids()]


def _node(_: Any) -> str:
    """Runs in an actor: the node it is on."""
    return ray.get_runtime_context().get_node_id()


def _address(_: Any) -> str:
    """Runs in an actor: the address that other nodes reach its node at."""
    return ray.util.get_node_ip_address()
