"""The ranks of a run's models; models on the same devices take turns."""

from megarlhf.cluster.placement import Gang
from megarlhf.cluster.processes import Processes
from megarlhf.cluster.residents import Residents
from megarlhf.cluster.worker_group import WorkerGroup
from megarlhf.config.schema import RLConfig


class ModelGroups:
    """Starts the ranks of models where the placement wants them.

    Args:
        config: The run's configuration.
        processes: Where they run.
    """

    def __init__(self, config: RLConfig, processes: Processes) -> None:
        self._config, self._processes = config, processes
        self._residents: dict[Gang, Residents] = {}

    def group(self, worker: type, role: str, config: RLConfig | None = None) -> WorkerGroup:
        """The ranks of a model, their processes starting.

        Args:
            worker: What each rank runs.
            role: The model's name in the placement.
            config: The model's configuration, where it differs from the run's.
        """
        gang = self._processes.placement.gang_of(role)
        residents = None
        if gang.engines or len(gang.roles) > 1:
            residents = self._residents.setdefault(gang, Residents())
        return WorkerGroup(worker, config or self._config, role, self._processes, residents)
