"""The parts of an RL run and what the loop does with them."""

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any

from megarlhf.cluster.engine_group import EngineGroup
from megarlhf.cluster.ray_cluster import ray_cluster
from megarlhf.cluster.turns import turns_of
from megarlhf.config.schema import RLConfig
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.errors import UserError
from megarlhf.rollout.settings import Sampling
from megarlhf.trainer import experience
from megarlhf.trainer.engine_settings import engine_settings
from megarlhf.trainer.reward_models import start_reward_models
from megarlhf.trainer.rl_inputs import RLInputs
from megarlhf.trainer.rollouts import Rollout
from megarlhf.trainer.run_directory import RunDirectory
from megarlhf.trainer.run_log import RunLog
from megarlhf.trainer.sources import rollouts_of
from megarlhf.trainer.trained_models import TrainedModels, critic_ranks


class RLRun:
    """Trained models, engines, logs and counters of one run; a context manager that ends them all.

    Args:
        config: The configuration.
        inputs: What was read before.
        directory: The claimed output directory.

    Attributes:
        step: Rollouts trained on; also the version of the actor's weights.
        credit: Gives the tokens of a rollout their advantages.
    """

    def __init__(self, config: RLConfig, inputs: RLInputs, directory: RunDirectory) -> None:
        self.config, self.inputs, self.directory = config, inputs, directory
        self.step = 0
        self._worst_gap = 0.0
        self._accuracy_before: float | None = None
        self._saved_step = 0  # what is there before the first step needs no saving
        self._exit = ExitStack()
        self._greedy = Sampling(1, 0.0, 1.0, -1, config.rollout.max_new_tokens)
        self.credit = experience.CreditAssignment(
            inputs.algorithm, config.algorithm, config.rollout.max_new_tokens
        )

    def __enter__(self) -> "RLRun":
        checkpoint = self.directory.newest_checkpoint()
        if checkpoint is not None:
            self._restore(checkpoint.state)
        self._stream = self.inputs.stream.state_dict()  # of what was trained on
        self.log = RunLog(
            self.directory.path,
            self.config,
            title=f"{self.inputs.algorithm.name} on {self.config.model.path}",
            total_steps=self.inputs.total_steps,
            done_steps=self.step,
        )
        cluster, rollout = self.config.cluster, self.config.rollout
        ranks = cluster.actor_ranks + critic_ranks(self.config, self.inputs.algorithm)
        ranks += len(self.config.reward.models) * cluster.reward_ranks
        cpus = ranks * cluster.cpus_per_rank
        cpus += rollout.engines * rollout.tensor_parallel
        with self._exit, self.log.progress.phase("start", setup=True):
            self._exit.enter_context(self.inputs.reward)
            self._exit.enter_context(ray_cluster(math.ceil(cpus)))
            note = self.log.progress.note
            self.engines = EngineGroup(self.config, engine_settings(self.config), note)
            self.models = TrainedModels.on_ray(
                self.config, self.inputs.algorithm, self.inputs.total_steps
            )
            self.models.start(None if checkpoint is None else checkpoint.directory)
            start_reward_models(self.config, self.inputs.reward)
            self.engines.start()
            self.engines.connect(self.models.actor)
            self.turns = turns_of(self.config, self.models.actor, self.engines, note)
            self._rollouts = self._exit.enter_context(
                rollouts_of(self.config, self.inputs, self.engines, self.turns, self.phase, note)
            )
            self._exit = self._exit.pop_all()  # all is up: keep it until the run ends
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit.__exit__(kind, error, trace)

    # -- what the loop says -----------------------------------------------------------------------

    def begin(self) -> None:
        """Bring the engines to the actor's weights; evaluate them if nothing is trained yet."""
        if self.step:
            self.log.progress.note(f"going on after step {self.step}")
        self.turns.update(self.step)
        if self.step == 0 and self.inputs.eval_prompts:
            self._accuracy_before = self._evaluate()
            self.log.point(0, {"eval_accuracy": self._accuracy_before})
            self.log.progress.note(f"held-out accuracy before: {self._accuracy_before:.1%}")
        self._rollouts.start(self.step)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time a part of the step."""
        return self.log.progress.phase(name)

    def next_rollout(self) -> Rollout:
        """The samples to train on now, scored and filtered: `RolloutMaker`."""
        return self._rollouts.take(self.step)

    def add_predictions(self, sequences: Sequence[TokenSequence]) -> None:
        """Give the sequences values and log-probabilities: see `TrainedModels.add_predictions`."""
        self.turns.train()
        self.models.add_predictions(sequences)

    def update_models(self, sequences: Sequence[TokenSequence]) -> dict[str, float]:
        """Train the actor and the critic on a rollout."""
        metrics = self.models.update(sequences, self.step, self.credit.kl.value)
        self._check_finite(metrics)
        if "kl" in metrics:
            self._check_gap(metrics["logprob_gap"])
            self.credit.kl.update(metrics["kl"], len(sequences))
        return metrics | experience.largest_gap(sequences)

    def update_engines(self) -> dict[str, float]:
        """Stream the new weights into every engine."""
        sent = self.turns.update(self.step + 1)
        self._rollouts.has_weights(self.step + 1)
        return {"stream_bytes": float(sent)}

    def finish_step(self, rollout: Rollout, metrics: dict[str, float]) -> None:
        """Count, log, and evaluate and save where they are due."""
        self.step += 1
        self._stream = rollout.stream
        metrics = {**experience.rollout_metrics(rollout.groups), **rollout.metrics, **metrics}
        train = self.config.train
        if self.inputs.eval_prompts and train.eval_every and self.step % train.eval_every == 0:
            with self.phase("evaluate"):
                metrics["eval_accuracy"] = self._evaluate()
        if train.save_every and self.step % train.save_every == 0:
            with self.phase("save"):
                self._save()
        self.log.rollouts(self.step, rollout.groups)
        self.log.step(self.step, metrics)

    def finish(self, *, interrupted: bool) -> dict[str, Any]:
        """Save; if the run is complete, evaluate and export too. Returns the summary."""
        if self._saved_step != self.step:
            with self.log.progress.phase("save", setup=True):
                self._save()
        if interrupted:
            self.log.progress.note(
                f"stopped after step {self.step}; the same command goes on from there"
            )
            return {"interrupted": True, "steps": self.step}
        accuracy = None
        if self.inputs.eval_prompts:
            with self.log.progress.phase("evaluate", setup=True):
                accuracy = self._evaluate()
            self.log.point(self.step, {"eval_accuracy": accuracy})
        with self.log.progress.phase("export", setup=True):
            self.turns.train()
            model = self.models.export(self.directory.path)
        summary = {
            "accuracy_before": self._accuracy_before,
            "accuracy_after": accuracy,
            "steps": self.step,
            "rollout_logprob_gap": self._worst_gap,
            "seconds": {name: round(s, 2) for name, s in self.log.progress.totals().items()},
        }
        self.log.finish(summary, {"checkpoint": model})
        return summary

    # -- how ----------------------------------------------------------------------------------------

    def _evaluate(self) -> float:
        """Mean reward of greedy answers to the held-out prompts: an accuracy for rewards 0 and 1."""
        prompts = self.inputs.eval_prompts
        self.turns.sample()
        groups = self.engines.generate(prompts, self._greedy, [0] * len(prompts))
        self.inputs.reward.score([group[0] for group in groups]).check(len(groups))
        self.log.evaluation(self.step, groups)
        rewards = [group[0].reward for group in groups if group[0].reward is not None]
        return sum(rewards) / len(rewards)

    def _check_finite(self, metrics: dict[str, float]) -> None:
        suspects = ("loss", "grad_norm", "critic_loss", "critic_grad_norm")
        broken = [name for name in suspects if not math.isfinite(metrics.get(name, 0.0))]
        if broken:
            raise UserError(
                f"{' and '.join(broken)} of step {self.step + 1} is not a finite number",
                fix="lower optimizer.lr; the newest checkpoint in output.dir is intact",
            )

    def _check_gap(self, gap: float) -> None:
        limit = self.config.algorithm.max_logprob_gap
        self._worst_gap = max(self._worst_gap, gap)
        if limit is not None and gap > limit:
            raise UserError(
                f"sampler and actor disagree: mean |log p difference| {gap:.2e} exceeds {limit:.2e}",
                where="algorithm.max_logprob_gap",
                fix="check dtype and versions on both sides, or raise the limit",
            )

    def _save(self) -> None:
        self.turns.train()
        with self._rollouts.undisturbed():
            directory = self.directory.begin_checkpoint(self.step)
            self.models.save(directory)
            self.directory.commit_checkpoint(
                directory,
                {
                    "step": self.step,
                    "stream": self._stream,  # not that of rollouts made ahead: they are made again
                    "credit": self.credit.state_dict(),
                    "accuracy_before": self._accuracy_before,
                    "worst_gap": self._worst_gap,
                    "saved_at": time.time(),
                },
            )
        self._saved_step = self.step

    def _restore(self, state: dict[str, Any]) -> None:
        self.inputs.stream.load_state_dict(state["stream"])
        self.credit.load_state_dict(state["credit"])
        self.step = self._saved_step = state["step"]
        self._accuracy_before = state["accuracy_before"]
        self._worst_gap = state["worst_gap"]
