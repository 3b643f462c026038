"""The ranks of one model, called together."""

from typing import Any

from megarlhf.cluster.failures import wait_for_all
from megarlhf.cluster.processes import Processes, Recipe
from megarlhf.cluster.residents import Residents
from megarlhf.config.schema import RLConfig


class WorkerGroup:
    """Every rank of a model.

    Args:
        worker: The class each rank runs, ``worker(config, rank, world, threads)``.
        config: The run's configuration.
        role: The model's name in the run's placement, which says how many ranks it has.
        processes: Where they run.
        residents: Takes turns for the devices that the model shares with others, if it does.

    Attributes:
        members: Handles of the ranks, in order.
        host: Address of rank 0's node, known after ``start``.
    """

    def __init__(
        self,
        worker: type,
        config: RLConfig,
        role: str,
        processes: Processes,
        residents: Residents | None = None,
    ) -> None:
        cluster, self.role = config.cluster, role
        one = next(r for r in processes.placement.gang_of(role).roles if r.name == role)
        environment = {} if processes.on_gpu else {"OMP_NUM_THREADS": str(cluster.threads_per_rank)}
        self._timeout = cluster.start_timeout_s
        self._processes = processes
        self.residents = residents
        self.members = []
        for rank in range(one.ranks):
            recipe = Recipe(
                worker, (config, rank, one.ranks, cluster.threads_per_rank), environment
            )
            self.members.append(processes.rank(role, rank, recipe))

    def start(self) -> None:
        """Let the ranks find each other and build their models.

        Raises:
            NoAnswer: That takes longer than ``cluster.start_timeout_s``.
        """
        first = self.members[0]
        wait_for_all([first.ready.remote()], self._processes, self._timeout)
        self.host = self._processes.address(first)
        (port,) = wait_for_all(
            [first.serve_ranks.remote(self.host)], self._processes, self._timeout
        )
        wait_for_all(self.call("start", self.host, port), self._processes, self._timeout)

    def call(self, method: str, *args: Any) -> list[Any]:
        """Start a method on every rank; returns references. Arguments are put on the way once."""
        if self.residents is not None:
            self.residents.enter(self, method)
        shared = [self._processes.shared(arg) for arg in args]
        return [getattr(member, method).remote(*shared) for member in self.members]

    def make_room(self) -> None:
        """Have all models on its devices put their memory away."""
        if self.residents is not None:
            self.residents.leave()

    def run(self, method: str, *args: Any) -> list[Any]:
        """Call a method on every rank and wait for all answers.

        The first rank that fails ends the wait: the others may be waiting for it.
        """
        return self.results(self.call(method, *args))

    def results(self, references: list[Any]) -> list[Any]:
        """What a `call` returned, on every rank; see `run`."""
        return wait_for_all(references, self._processes)

    def merged(self, method: str, *args: Any) -> dict[int, Any]:
        """Call a method whose answers are dictionaries of disjoint shares, and join them."""
        return joined(self.run(method, *args))


def joined(answers: list[dict[int, Any]]) -> dict[int, Any]:
    """One dictionary of disjoint shares."""
    return {index: value for answer in answers for index, value in answer.items()}
