"""The ranks of one model as Ray actors, called together."""

from typing import Any

import ray

from megarlhf.cluster.failures import culprit
from megarlhf.cluster.ray_cluster import QUIET, have_gpus
from megarlhf.cluster.shares import gpus_of_rank
from megarlhf.config.schema import RLConfig


class WorkerGroup:
    """Every rank of a model.

    Args:
        worker: The class each rank runs, ``worker(config, rank, world, threads)``.
        config: The run's configuration.
        world: Number of ranks.

    Attributes:
        members: Handles of the ranks, in order.
        host: Address of rank 0's node, known after ``start``.
    """

    def __init__(self, worker: type, config: RLConfig, world: int) -> None:
        cluster = config.cluster
        resources = (
            {"num_gpus": gpus_of_rank(config)}
            if have_gpus()
            else {"num_cpus": cluster.cpus_per_rank}
        )
        environment = dict(QUIET)
        if not have_gpus():
            environment["OMP_NUM_THREADS"] = str(cluster.threads_per_rank)
        remote = ray.remote(worker).options(**resources, runtime_env={"env_vars": environment})
        self._timeout = cluster.start_timeout_s
        self.members = [
            remote.remote(config, rank, world, cluster.threads_per_rank) for rank in range(world)
        ]

    def start(self) -> None:
        """Let the ranks find each other and build their models."""
        first = self.members[0]
        self.host = ray.get(first.__ray_call__.remote(_node_address), timeout=self._timeout)
        port = ray.get(first.free_port.remote(self.host))
        ray.get(self.call("start", self.host, port), timeout=self._timeout)

    def call(self, method: str, *args: Any) -> list[ray.ObjectRef]:
        """Start a method on every rank; arguments are put into the object store once."""
        shared = [ray.put(arg) for arg in args]
        return [getattr(member, method).remote(*shared) for member in self.members]

    def run(self, method: str, *args: Any) -> list[Any]:
        """Call a method on every rank and wait for all answers.

        The first rank that fails ends the wait: the others may be waiting for it.
        """
        return wait_for_all(self.call(method, *args))

    def results(self, references: list[ray.ObjectRef]) -> list[Any]:
        """What a `call` returned, on every rank; see `run`."""
        return wait_for_all(references)

    def merged(self, method: str, *args: Any) -> dict[int, Any]:
        """Call a method whose answers are dictionaries of disjoint shares, and join them."""
        return joined(self.run(method, *args))


def joined(answers: list[dict[int, Any]]) -> dict[int, Any]:
    """One dictionary of disjoint shares."""
    return {index: value for answer in answers for index, value in answer.items()}


def wait_for_all(references: list[ray.ObjectRef], timeout_s: float | None = None) -> list[Any]:
    """Every result, in order; raises as soon as any of them failed.

    Args:
        references: Of the results.
        timeout_s: The longest to wait between two of them, seconds; None: as long as it takes.

    Raises:
        GetTimeoutError: Nothing came for so long.
    """
    left = list(references)
    while left:
        done, left = ray.wait(left, num_returns=1, timeout=timeout_s)
        if not done:
            raise ray.exceptions.GetTimeoutError(f"{len(left)} gave no answer in {timeout_s:g} s")
        try:
            ray.get(done)
        except Exception as error:
            raise culprit(error, left) from None
    return ray.get(references)


def _node_address(_: Any) -> str:
    """Runs in an actor: the address that other nodes reach its node at."""
    return ray.util.get_node_ip_address()
