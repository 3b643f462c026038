"""What the loop of an RL run does with its parts; its counters, logs and checkpoints."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from megarlhf.cluster.processes import Opener
from megarlhf.config.schema import RLConfig
from megarlhf.data.records import Prompt, Sample
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.errors import UserError
from megarlhf.rollout.settings import Sampling
from megarlhf.trainer import experience
from megarlhf.trainer.best_checkpoint import BestCheckpoint
from megarlhf.trainer.evaluation import Evaluation
from megarlhf.trainer.rl_inputs import RLInputs
from megarlhf.trainer.rl_parts import rl_parts
from megarlhf.trainer.rollouts import Rollout
from megarlhf.trainer.run_directory import RunDirectory
from megarlhf.trainer.run_log import RunLog
from megarlhf.trainer.updates import sequence_multiple


class RLRun:
    """One run; a context manager that starts its parts and ends them.

    Args:
        config: The configuration.
        inputs: What was read before.
        directory: The claimed output directory.
        processes: Who keeps the processes.

    Attributes:
        step: Rollouts trained on; also the version of the actor's weights.
        credit: Gives the tokens of a rollout their advantages.
        sequence_multiple: See `updates.sequence_multiple`.
    """

    def __init__(
        self, config: RLConfig, inputs: RLInputs, directory: RunDirectory, processes: Opener
    ) -> None:
        self._open_processes = processes
        self.config, self.inputs, self.directory = config, inputs, directory
        self.step = 0
        self._worst_gap = 0.0
        self._accuracy_before: float | None = None
        self._accuracy: tuple[int, float | None] = (0, None)  # after a step: the last evaluation's
        best = directory.checkpoints.best()
        self._best = BestCheckpoint(config.train, None if best is None else best[1])
        self._saved_step = 0  # what is there before the first step needs no saving
        self._exit = ExitStack()
        self.sequence_multiple = sequence_multiple(config, has_critic=inputs.algorithm.needs_critic)
        self.credit = experience.CreditAssignment(
            inputs.algorithm, config.algorithm, config.rollout.max_new_tokens
        )

    def __enter__(self) -> "RLRun":
        checkpoint = self.directory.checkpoints.newest()
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
        self.evaluation = Evaluation(
            self.config,
            self.inputs.eval_sets,
            self._generate,
            self.inputs.reward,
            self.log.evaluation,
        )
        parts = self._exit.enter_context(
            rl_parts(
                self.config,
                self.inputs,
                self._open_processes,
                None if checkpoint is None else checkpoint.directory,
                self.log.progress,
            )
        )
        self.models, self.engines, self.turns = parts.models, parts.engines, parts.turns
        self._rollouts, self._evaluator = parts.rollouts, parts.evaluator
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
        if self.step == 0 and self.evaluation:
            metrics = self._evaluated()
            self._accuracy_before = self._accuracy[1]
            self.log.point(0, metrics)
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
        self.turns.to_trainer()
        self.models.add_predictions(sequences)

    def update_models(self, sequences: Sequence[TokenSequence]) -> dict[str, float]:
        """Train the actor and the critic on a rollout."""
        metrics = self.models.update(sequences, self.step, self.credit.kl.value)
        self._has_learned = "loss" in metrics  # not while only the critic does, or all was skipped
        if "kl" in metrics:
            self._check_gap(metrics["logprob_gap"])
            self.credit.kl.update(metrics["kl"], len(sequences))
        return metrics | experience.largest_gap(sequences)

    def update_engines(self) -> dict[str, float]:
        """Stream the new weights, if they are, into every engine."""
        sent = self.turns.update(self.step + 1) if self._has_learned else 0
        self._rollouts.has_weights(self.step + 1, self.engines.version)
        return {"stream_bytes": float(sent)} if self._has_learned else {}

    def finish_step(self, rollout: Rollout, metrics: dict[str, float]) -> None:
        """Count, evaluate and save where they are due, and log.

        The step is logged before its checkpoint counts: a run that is killed at any moment goes on with
        each step in its logs, and once.
        """
        self.step += 1
        self._stream = rollout.stream
        metrics = {**experience.rollout_metrics(rollout.groups), **rollout.metrics, **metrics}
        is_best, written = False, None
        if self.evaluation and (
            self.step == self.inputs.total_steps or self._is_due(self.config.train.eval_every)
        ):
            with self.phase("evaluate"):
                metrics |= self._evaluated()
            is_best = self._best.beaten_by(metrics)
        if is_best or self._is_due(self.config.train.save_every):
            with self.phase("save"):
                written = self._write_checkpoint()
        self.log.rollouts(self.step, rollout.groups)
        self.log.step(self.step, metrics)
        if written is not None:
            self._commit_checkpoint(written, self._best.record if is_best else None)

    def finish(self, *, interrupted: bool) -> dict[str, Any]:
        """Save; if the run is complete, evaluate and export too. Returns the summary."""
        if self._saved_step != self.step:
            with self.log.progress.phase("save", setup=True):
                self._commit_checkpoint(self._write_checkpoint())
        if interrupted:
            self.log.progress.note(
                f"stopped after step {self.step}; the same command goes on from there"
            )
            return {"interrupted": True, "steps": self.step}
        if self.evaluation and self._accuracy[0] < self.step:  # the run was shortened
            with self.log.progress.phase("evaluate", setup=True):
                metrics = self._evaluated()
            self.log.point(self.step, metrics)
            if self._best.beaten_by(metrics):
                self.directory.checkpoints.mark_best(self.step, self._best.record)
        with self.log.progress.phase("export", setup=True):
            self.turns.to_trainer()
            model = self.models.export(self.directory.path)
            best = self.directory.checkpoints.best()
            if best is not None and self.config.output.export_best:
                self.models.export_from(best[0], self.directory.path / "best")
        measured, accuracy = self._accuracy
        summary = {
            "accuracy_before": self._accuracy_before,
            "accuracy_after": accuracy if measured == self.step else None,
            **({} if best is None else {"best_step": best[1]["step"], "best": best[1]["value"]}),
            "steps": self.step,
            "rollout_logprob_gap": self._worst_gap,
            "seconds": {name: round(s, 2) for name, s in self.log.progress.totals().items()},
        }
        self.log.finish(summary, {"checkpoint": model})
        return summary

    # -- how ----------------------------------------------------------------------------------------

    def _generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[Sample]]:
        self.turns.to_engines()
        return self._evaluator.generate(prompts, sampling, seeds)

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _evaluated(self) -> dict[str, float]:
        metrics = self.evaluation.run(self.step)
        self._accuracy = self.step, next(iter(metrics.values()))
        return metrics

    def _check_gap(self, gap: float) -> None:
        limit = self.config.algorithm.max_logprob_gap
        self._worst_gap = max(self._worst_gap, gap)
        if limit is not None and gap > limit:
            raise UserError(
                f"sampler and actor disagree: mean |log p difference| {gap:.2e} exceeds {limit:.2e}",
                where="algorithm.max_logprob_gap",
                fix="check dtype and versions on both sides, or raise the limit",
            )

    def _write_checkpoint(self) -> Path:
        self.turns.to_trainer()
        with self._rollouts.undisturbed():
            directory = self.directory.checkpoints.begin(self.step)
            self.models.save(directory)
        return directory

    def _commit_checkpoint(self, directory: Path, best: dict[str, Any] | None = None) -> None:
        state = {
            "step": self.step,
            "stream": self._stream,  # not that of rollouts made ahead: they are made again
            "credit": self.credit.state_dict(),
            "accuracy_before": self._accuracy_before,
            "accuracy": self._accuracy,
            "worst_gap": self._worst_gap,
            "saved_at": time.time(),
        }
        with self._rollouts.undisturbed():
            self.directory.checkpoints.commit(directory, state, best)
        self._saved_step = self.step

    def _restore(self, state: dict[str, Any]) -> None:
        self.inputs.stream.load_state_dict(state["stream"])
        self.credit.load_state_dict(state["credit"])
        self.step = self._saved_step = state["step"]
        self._accuracy_before = state["accuracy_before"]
        self._accuracy = tuple(state.get("accuracy", self._accuracy))
        self._worst_gap = state["worst_gap"]
