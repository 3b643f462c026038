"""When the engines' live weights are compared with the trainer's, and the comparison."""

from typing import Any

from megarlhf.cluster.failures import wait_for_all
from megarlhf.cluster.processes import Processes
from megarlhf.cluster.worker_group import WorkerGroup
from megarlhf.config.schema import StreamConfig
from megarlhf.sync.fingerprints import Fingerprints, compare
from megarlhf.sync.plan import Worker


class Verification:
    """Counts updates.

    Args:
        config: When to compare.
        processes: Trainer's and engines'.
    """

    def __init__(self, config: StreamConfig, processes: Processes) -> None:
        self._config, self._processes = config, processes
        self._updates = 0

    def after_update(self, trainer: WorkerGroup, engines: dict[int, Any]) -> None:
        """Compare, if it is due.

        Raises:
            UserError: An engine has something else; names the tensor.
        """
        due = self._is_due()
        self._updates += 1
        if due:
            verify(trainer, engines, self._processes)

    def _is_due(self) -> bool:
        config = self._config
        if config.verify != "first":
            return config.verify == "always"
        again = config.verify_every > 0 and self._updates % config.verify_every == 0
        return self._updates == 0 or again


def verify(trainer: WorkerGroup, engines: dict[int, Any], processes: Processes) -> int:
    """Compare fingerprints of every rectangle that every worker of the engines keeps.

    Returns:
        The number of rectangles.

    Raises:
        UserError: An engine has something else; names the tensor.
    """
    calls = trainer.call("stream_fingerprints", list(engines))
    answers = wait_for_all(
        [*calls, *(engine.stream_fingerprints.remote() for engine in engines.values())], processes
    )
    sent: dict[Worker, Fingerprints] = {}
    for of_rank in answers[: len(calls)]:
        for worker, prints in of_rank.items():
            sent.setdefault(worker, {}).update(prints)
    count = 0
    for number, of_workers in zip(engines, answers[len(calls) :], strict=True):
        for worker, prints in enumerate(of_workers):
            where = f"engine {number}" + (f", worker {worker}" if len(of_workers) > 1 else "")
            compare(sent.get((number, worker), {}), prints, where)
            count += len(prints)
    return count
