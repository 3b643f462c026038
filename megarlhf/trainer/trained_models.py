"""The models of an RL run that learn, actor and critic, and the actor's reference."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from megarlhf.algo.policy_loss import PolicyLoss
from megarlhf.algo.registry import Algorithm
from megarlhf.algo.value_loss import ValueLoss
from megarlhf.cluster.model_groups import ModelGroups
from megarlhf.cluster.worker_group import WorkerGroup, joined
from megarlhf.config.schema import RLConfig
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.engine.actor_worker import ActorWorker
from megarlhf.engine.critic_worker import CriticWorker
from megarlhf.engine.reference_worker import ReferenceWorker
from megarlhf.parallel import context
from megarlhf.report.jsonl import replace_file
from megarlhf.trainer import experience
from megarlhf.trainer.pretraining_rows import PretrainingRows
from megarlhf.trainer.skipped_steps import SkippedSteps
from megarlhf.trainer.updates import RolloutUpdates

STATE = "models.json"  # in a checkpoint: what the driver knows of the models


def kinds_of_models(config: RLConfig, algorithm: Algorithm) -> list[str]:
    """The kinds of models that have ranks of their own, as `placement_of` names them."""
    has_own_reference = config.cluster.reference_ranks is not None
    wanted = {
        "actor": True,
        "critic": algorithm.needs_critic,
        "reference": has_own_reference and config.algorithm.kl_coef > 0,
        "reward": True,
    }
    return [kind for kind, is_wanted in wanted.items() if is_wanted]


class TrainedModels:
    """Actor, critic and reference on their ranks.

    Args:
        config: The run's configuration.
        algorithm: The algorithm's row of the registry.
        total_rollouts: How many rollouts the whole run trains on.
        actor: The actor's ranks.
        critic: The critic's ranks, for an algorithm that has one.
        reference: The reference's ranks, where it has its own; otherwise the actor's do its work.
        ptx: Supervised rows mixed into the actor's batches.
        note: Tells the person at the keyboard.
    """

    def __init__(
        self,
        config: RLConfig,
        algorithm: Algorithm,
        total_rollouts: int,
        actor: WorkerGroup,
        critic: WorkerGroup | None = None,
        reference: WorkerGroup | None = None,
        *,
        ptx: PretrainingRows | None = None,
        note: Callable[[str], None] = print,
    ) -> None:
        self._config, self._ptx = config, ptx
        self.actor, self.critic = actor, critic
        self._reference = reference
        rollout = config.rollout
        self._loss = PolicyLoss(
            algorithm,
            config.algorithm,
            temperature=rollout.temperature,
            max_tokens=rollout.max_new_tokens,
            sequence_sums=context.sequence_sums,
        )
        self._value_loss = ValueLoss(config.algorithm, rollout.max_new_tokens)
        self._skipped = {
            name: SkippedSteps(Path(config.output.dir), name, config.train.max_skipped_steps, note)
            for name, _ in self._groups()
        }
        self._updates = RolloutUpdates(
            actor,
            config,
            config.optimizer,
            total_rollouts,
            self._skipped["actor"],
            None if ptx is None else ptx.mix,
        )
        if critic is not None:
            self._critic_updates = RolloutUpdates(
                critic, config, config.critic.optimizer, total_rollouts, self._skipped["critic"]
            )

    @classmethod
    def placed(
        cls,
        config: RLConfig,
        algorithm: Algorithm,
        total_rollouts: int,
        groups: ModelGroups,
        ptx: PretrainingRows | None,
        note: Callable[[str], None],
    ) -> "TrainedModels":
        """The models, their ranks started where ``groups`` places them; `start` builds them."""
        workers = {"actor": ActorWorker, "critic": CriticWorker, "reference": ReferenceWorker}
        kinds = kinds_of_models(config, algorithm)
        models = {kind: groups.group(workers[kind], kind) for kind in kinds if kind in workers}
        return cls(config, algorithm, total_rollouts, **models, ptx=ptx, note=note)

    def start(self, checkpoint: Path | None) -> None:
        """Build and load the models; those that learn go on from a checkpoint."""
        if self._reference is not None:
            self._reference.start()
        for name, group in self._groups():
            group.start()
            if checkpoint is not None:
                group.run("load", str(checkpoint / name))
        if checkpoint is not None:
            self._load_state(json.loads((checkpoint / STATE).read_text()))

    def save(self, directory: Path) -> None:
        """Write a checkpoint of each model that learns into a directory of its own."""
        for name, group in self._groups():
            (directory / name).mkdir()
            group.run("save", str(directory / name))
        state = {name: skipped.state_dict() for name, skipped in self._skipped.items()}
        if self._ptx is not None:
            state["ptx"] = self._ptx.state_dict()
        replace_file(directory / STATE, (json.dumps(state, indent=2) + "\n").encode())

    def export(self, directory: Path) -> Path:
        """Write the actor, its average and the critic where wanted; returns the actor's directory."""
        averaged = self._config.ema.decay is not None
        instead = averaged and self._config.ema.export == "instead"
        result = directory / self._config.lora.result
        self.actor.run("export_average" if instead else "export", str(result))
        if averaged and not instead:
            self.actor.run("export_average", str(directory / "ema"))
        if self.critic is not None and self._config.critic.export:
            self.critic.run("export", str(directory / "critic"))
        return result

    def export_from(self, checkpoint: Path, directory: Path) -> None:
        """Write the actor of a checkpoint, which the ranks hold from then on instead of the newest."""
        self.actor.run("load", str(checkpoint / "actor"))
        self.actor.run("export", str(directory))

    def add_predictions(self, sequences: Sequence[TokenSequence]) -> None:
        """Give the sequences what the losses need of the models as they are before this rollout.

        The critic's values, and the reference's and the old policy's log-probabilities, each where the
        algorithm wants it.
        """
        valuing = [] if self.critic is None else self.critic.call("values", sequences)
        if self._config.algorithm.kl_coef > 0:
            reference = self._reference or self.actor
            values = reference.merged("reference_logprobs", sequences, self._loss.temperature)
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
            sequences: With everything that the losses read.
            rollout: The rollout's number, from 0.
            kl_coef: The current coefficient of the KL penalty.

        Returns:
            Means over the optimizer steps taken; the critic's begin with ``critic_``. Nothing of the
            actor while only the critic learns.

        Raises:
            UserError: ``train.max_skipped_steps`` in a row were skipped, and one more.
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

    def _load_state(self, state: dict[str, Any]) -> None:
        for name, skipped in self._skipped.items():
            skipped.load_state_dict(state[name])
        if self._ptx is not None:
            self._ptx.load_state_dict(state["ptx"])

    def _groups(self) -> list[tuple[str, WorkerGroup]]:
        """The models that learn, with the names that they have in a checkpoint."""
        groups = {"actor": self.actor, "critic": self.critic}
        return [(name, group) for name, group in groups.items() if group is not None]
