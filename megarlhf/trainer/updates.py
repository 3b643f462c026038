"""The optimizer steps that a rollout gives a model on its ranks."""

import math
from collections.abc import Sequence
from typing import Any

from megarlhf.algo.minibatches import minibatches
from megarlhf.cluster.worker_group import WorkerGroup
from megarlhf.config.layout_checks import dealt_in
from megarlhf.config.schema import OptimizerConfig, RLConfig
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.engine.loss import TokenLoss
from megarlhf.engine.schedule import learning_rate


class RolloutUpdates:
    """``algorithm.epochs`` times ``updates_per_rollout`` steps a rollout.

    Args:
        group: The model's ranks.
        config: The run's configuration.
        optimizer: The model's.
        total_rollouts: Of the whole run, for the learning rate's schedule.
    """

    def __init__(
        self, group: WorkerGroup, config: RLConfig, optimizer: OptimizerConfig, total_rollouts: int
    ) -> None:
        self._group, self._config = group, config
        self._optimizer, self._total = optimizer, total_rollouts

    def start(
        self, sequences: Sequence[TokenSequence], loss: TokenLoss, rollout: int
    ) -> list[list[Any]]:
        """Hand the steps of rollout number ``rollout`` to the ranks, which take them in order.

        Returns:
            What `finish` waits for, so that other models may learn meanwhile.
        """
        algorithm = self._config.algorithm
        steps = minibatches(
            len(sequences),
            algorithm.updates_per_rollout,
            algorithm.epochs,
            seed=f"{self._config.train.seed}-{rollout}-order",
        )
        total = self._total * len(steps)
        return [
            self._group.call(
                "train",
                [sequences[index] for index in chosen],
                loss,
                learning_rate(self._optimizer, rollout * len(steps) + number, total),
            )
            for number, chosen in enumerate(steps)
        ]

    def finish(self, started: list[list[Any]]) -> dict[str, float]:
        """The metrics' means over the steps."""
        results = [self._group.results(step)[0] for step in started]
        return {name: sum(r[name] for r in results) / len(results) for name in results[0]}


def sequences_in(config: RLConfig, critic_ranks: int) -> int:
    """A rollout of a multiple of so many sequences can be cut into updates and dealt to the ranks.

    Args:
        config: The run's configuration.
        critic_ranks: Of the critic; 0 without one.
    """
    dealt = [dealt_in(config.model.parallel, config.cluster.actor_ranks)]
    if critic_ranks:
        dealt.append(dealt_in(config.critic.parallel, critic_ranks))
    return math.lcm(*dealt) * config.algorithm.updates_per_rollout
