"""The models of an RL run that learn: the actor and, where the algorithm has one, the critic."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megarlhf.algo.policy_loss import PolicyLoss
from megarlhf.algo.registry import Algorithm
from megarlhf.algo.value_loss import ValueLoss
from megarlhf.cluster.worker_group import WorkerGroup, joined
from megarlhf.config.schema import RLConfig
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.engine.actor_worker import ActorWorker
from megarlhf.engine.critic_worker import CriticWorker
from megarlhf.parallel import context
from megarlhf.trainer import experience
from megarlhf.trainer.updates import RolloutUpdates


def critic_ranks(config: RLConfig, algorithm: Algorithm) -> int:
    """How many the run needs."""
    if not algorithm.needs_critic:
        return 0
    return config.cluster.critic_ranks or config.cluster.actor_ranks


class TrainedModels:
    """Actor and critic on their ranks.

    Args:
        config: The run's configuration.
        algorithm: Its row.
        total_rollouts: Of the whole run.
        actor: Its ranks.
        critic: Its ranks, for an algorithm that has one.
    """

    def __init__(
        self,
        config: RLConfig,
        algorithm: Algorithm,
        total_rollouts: int,
        actor: WorkerGroup,
        critic: WorkerGroup | None = None,
    ) -> None:
        self._config = config
        self.actor, self.critic = actor, critic
        rollout = config.rollout
        self._loss = PolicyLoss(
            algorithm,
            config.algorithm,
            temperature=rollout.temperature,
            max_tokens=rollout.max_new_tokens,
            sequence_sums=context.sequence_sums,
        )
        self._value_loss = ValueLoss(config.algorithm, rollout.max_new_tokens)
        self._updates = RolloutUpdates(actor, config, config.optimizer, total_rollouts)
        if critic is not None:
            optimizer = config.critic.optimizer
            self._critic_updates = RolloutUpdates(critic, config, optimizer, total_rollouts)

    @classmethod
    def on_ray(cls, config: RLConfig, algorithm: Algorithm, total_rollouts: int) -> "TrainedModels":
        """With ranks as Ray actors, which `start` starts."""
        actor = WorkerGroup(ActorWorker, config, config.cluster.actor_ranks)
        ranks = critic_ranks(config, algorithm)
        critic = WorkerGroup(CriticWorker, config, ranks) if ranks else None
        return cls(config, algorithm, total_rollouts, actor, critic)

    def start(self, checkpoint: Path | None) -> None:
        """Build and load the models; go on from a checkpoint."""
        for name, group in self._groups():
            group.start()
            if checkpoint is not None:
                group.run("load", str(checkpoint / name))

    def save(self, directory: Path) -> None:
        """Write a checkpoint of each into a directory of its own."""
        for name, group in self._groups():
            (directory / name).mkdir()
            group.run("save", str(directory / name))

    def export(self, directory: Path) -> Path:
        """Write the actor, and the critic where it is wanted; returns the actor's directory."""
        result = directory / self._config.lora.result
        self.actor.run("export", str(result))
        if self.critic is not None and self._config.critic.export:
            self.critic.run("export", str(directory / "critic"))
        return result

    def add_predictions(self, sequences: Sequence[TokenSequence]) -> None:
        """Give the sequences the critic's values, the reference's and the old policy's logprobs.

        Each where it is wanted.
        """
        valuing = [] if self.critic is None else self.critic.call("values", sequences)
        if self._config.algorithm.kl_coef > 0:
            values = self.actor.merged("reference_logprobs", sequences, self._loss.temperature)
            experience.add_field(sequences, "reference_logprobs", values)
        if experience.needs_old_logprobs(self._config.algorithm):
            values = self.actor.merged("logprobs", sequences, self._loss.temperature)
            experience.add_field(sequences, "old_logprobs", values)
        if self.critic is not None:
            experience.add_field(sequences, "old_values", joined(self.critic.results(valuing)))

    def update(
        self, sequences: Sequence[TokenSequence], rollout: int, kl_coef: float
    ) -> dict[str, float]:
        """Train the actor and, at the same time, the critic on a rollout.

        Args:
            sequences: With all that the losses read.
            rollout: Its number, from 0.
            kl_coef: The KL penalty's coefficient now.

        Returns:
            Means over the optimizer steps; the critic's begin with ``critic_``. Nothing of the actor
            while only the critic learns.
        """
        learning = []
        if self.critic is not None:
            learning = self._critic_updates.start(sequences, self._value_loss, rollout)
        metrics = {}
        if self.critic is None or rollout >= self._config.critic.warmup_rollouts:
            loss = replace(self._loss, config=replace(self._config.algorithm, kl_coef=kl_coef))
            metrics = self._updates.finish(self._updates.start(sequences, loss, rollout))
            metrics["kl_coef"] = kl_coef
        if self.critic is not None:
            found = self._critic_updates.finish(learning)
            metrics |= {f"critic_{name}": value for name, value in found.items()}
        return metrics

    def _groups(self) -> list[tuple[str, WorkerGroup]]:
        """With their names in a checkpoint."""
        groups = {"actor": self.actor, "critic": self.critic}
        return [(name, group) for name, group in groups.items() if group is not None]
