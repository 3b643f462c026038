"""The optimizer steps that a rollout gives a model on its ranks."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from megarlhf.algo.minibatches import minibatches
from megarlhf.cluster.worker_group import WorkerGroup
from megarlhf.config.batch_checks import dealt_in
from megarlhf.config.schema import OptimizerConfig, RLConfig
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.engine.loss import TokenLoss
from megarlhf.engine.schedule import learning_rate
from megarlhf.trainer.skipped_steps import SkippedSteps, mean_of_taken

# From an optimizer step's sequences and loss to those it really has.
Mix = Callable[[Sequence[TokenSequence], Any], tuple[Sequence[TokenSequence], TokenLoss]]


class StartedStep(NamedTuple):
    """An optimizer step that the ranks are taking.

    Attributes:
        name: For messages.
        sequences: Its batch.
        answers: What `WorkerGroup.call` returned.
    """

    name: str
    sequences: Sequence[TokenSequence]
    answers: list[Any]


class RolloutUpdates:
    """Trains one model on rollouts: ``algorithm.epochs`` * ``updates_per_rollout`` steps for each.

    Args:
        group: The model's ranks.
        config: The run's configuration.
        optimizer: The model's optimizer settings.
        total_rollouts: Of the whole run, for the learning rate's schedule.
        skipped: Watches for steps that were skipped.
        mix: Adds what a step learns from besides the rollout's sequences; None: nothing.
    """

    def __init__(
        self,
        group: WorkerGroup,
        config: RLConfig,
        optimizer: OptimizerConfig,
        total_rollouts: int,
        skipped: SkippedSteps,
        mix: Mix | None = None,
    ) -> None:
        self._group, self._config = group, config
        self._optimizer, self._total = optimizer, total_rollouts
        self._skipped, self._mix = skipped, mix

    def start(
        self, sequences: Sequence[TokenSequence], loss: TokenLoss, rollout: int
    ) -> list[StartedStep]:
        """Send the steps of rollout number ``rollout`` to the ranks, which take them in order.

        Returns:
            What `finish` waits for; other models may learn in the meantime.
        """
        algorithm = self._config.algorithm
        steps = minibatches(
            len(sequences),
            algorithm.updates_per_rollout,
            algorithm.epochs,
            seed=f"{self._config.train.seed}-{rollout}-order",
        )
        started = []
        for number, chosen in enumerate(steps):
            batch: Sequence[TokenSequence] = [sequences[index] for index in chosen]
            own = loss
            if self._mix is not None:
                batch, own = self._mix(batch, loss)
            lr = learning_rate(
                self._optimizer, rollout * len(steps) + number, self._total * len(steps)
            )
            name = f"step {rollout + 1}" + (f" update {number + 1}" if len(steps) > 1 else "")
            started.append(StartedStep(name, batch, self._group.call("train", batch, own, lr)))
        return started

    def finish(self, started: Sequence[StartedStep]) -> dict[str, float]:
        """The metrics' means over the steps that were taken; see `mean_of_taken`.

        Raises:
            UserError: Too many in a row were skipped.
        """
        found = []
        for step in started:
            metrics = self._group.results(step.answers)[0]
            self._skipped.see(step.name, step.sequences, metrics)
            found.append(metrics)
        return mean_of_taken(found)


def sequence_multiple(config: RLConfig, *, has_critic: bool) -> int:
    """What the number of a rollout's sequences must be a multiple of, to be cut into updates and dealt.

    Args:
        config: The run's configuration.
        has_critic: Whether they are dealt to a critic's ranks, too.
    """
    cluster = config.cluster
    dealt = [dealt_in(config.model.parallel, cluster.actor_ranks)]
    if has_critic:
        ranks = cluster.critic_ranks or cluster.actor_ranks
        dealt.append(dealt_in(config.critic.parallel, ranks))
    return math.lcm(*dealt) * config.algorithm.updates_per_rollout
