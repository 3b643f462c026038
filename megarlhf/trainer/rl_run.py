"""The parts of an RL run and what the loop does with them."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from types import TracebackType
from typing import Any

from megarlhf.cluster.device_turns import by_turns_on_gpus, device_turns
from megarlhf.cluster.engine_group import EngineGroup
from megarlhf.cluster.model_groups import ModelGroups
from megarlhf.cluster.placement import placement_of
from megarlhf.cluster.processes import Opener
from megarlhf.cluster.stream_links import check_transport
from megarlhf.config.schema import RLConfig
from megarlhf.data.records import Prompt, Sample
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.errors import UserError
from megarlhf.rollout.settings import Sampling
from megarlhf.trainer import experience
from megarlhf.trainer.best_checkpoint import BestCheckpoint
from megarlhf.trainer.engine_settings import engine_settings
from megarlhf.trainer.evaluation import Evaluation
from megarlhf.trainer.reward_models import start_reward_models
from megarlhf.trainer.rl_inputs import RLInputs
from megarlhf.trainer.rollout_source import rollouts_of
from megarlhf.trainer.rollouts import Rollout
from megarlhf.trainer.run_directory import RunDirectory
from megarlhf.trainer.run_log import RunLog
from megarlhf.trainer.samplers import samplers_of
from megarlhf.trainer.trained_models import TrainedModels, kinds_of_models
from megarlhf.trainer.updates import sequence_multiple


class RLRun:
    """Trained models, engines, logs and counters of one run; a context manager that ends them all.

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
        best = directory.best()
        self._best = BestCheckpoint(config.train, None if best is None else best[1])
        self._saved_step = 0  # what is there before the first step needs no saving
        self._exit = ExitStack()
        self.sequence_multiple = sequence_multiple(config, has_critic=inputs.algorithm.needs_critic)
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
        config, algorithm = self.config, self.inputs.algorithm
        placement = placement_of(config, kinds_of_models(config, algorithm))
        with self._exit, self.log.progress.phase("start", setup=True):
            self._exit.enter_context(self.inputs.reward)
            processes = self._exit.enter_context(self._open_processes(placement))
            note = self.log.progress.note
            check_transport(config, self.inputs.spec, on_gpu=processes.on_gpu)
            groups = ModelGroups(config, processes)
            self.models = TrainedModels.placed(
                config, algorithm, self.inputs.total_steps, groups, self.inputs.ptx, note
            )
            make_engines = partial(EngineGroup, config, engine_settings(config), processes, note)
            alone = by_turns_on_gpus(config, on_gpu=processes.on_gpu)
            engines = None if alone else make_engines()  # which start while the models do
            self.models.start(None if checkpoint is None else checkpoint.directory)
            start_reward_models(config, self.inputs.reward.scorers, groups)
            if alone:
                self.models.actor.make_room()
            self.engines = engines or make_engines()
            self.engines.start()
            self.turns = device_turns(
                config, self.models.actor, self.engines, note, on_gpu=processes.on_gpu
            )
            self.turns.to_trainer()  # whoever shares memory with engines is asked to meet them
            self.engines.connect(self.models.actor)
            inputs = self.inputs
            sampler, self._evaluator = self._exit.enter_context(
                samplers_of(config, inputs.tokenizer, inputs.spec.vocab_size, self.engines)
            )
            self._rollouts = self._exit.enter_context(
                rollouts_of(config, inputs, sampler, self.engines, self.turns, self.phase, note)
            )
            self.evaluation = Evaluation(
                config, inputs.eval_sets, self._generate, inputs.reward, self.log.evaluation
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
        if self.step == 0 and self.evaluation:
            metrics = self.evaluation.run(0)
            self._accuracy_before = next(iter(metrics.values()))
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
        """Count, log, and evaluate and save where they are due."""
        self.step += 1
        self._stream = rollout.stream
        metrics = {**experience.rollout_metrics(rollout.groups), **rollout.metrics, **metrics}
        train = self.config.train
        is_best = False
        if self.evaluation and train.eval_every and self.step % train.eval_every == 0:
            with self.phase("evaluate"):
                metrics |= self.evaluation.run(self.step)
            is_best = self._best.beaten_by(metrics)
        if is_best or (train.save_every and self.step % train.save_every == 0):
            with self.phase("save"):
                self._save(is_best=is_best)
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
        metrics = {}
        if self.evaluation:
            with self.log.progress.phase("evaluate", setup=True):
                metrics = self.evaluation.run(self.step)
            self.log.point(self.step, metrics)
            if self._best.beaten_by(metrics):
                self.directory.mark_best(self.step, self._best.record)
        with self.log.progress.phase("export", setup=True):
            self.turns.to_trainer()
            model = self.models.export(self.directory.path)
            best = self.directory.best()
            if best is not None and self.config.output.export_best:
                self.models.export_from(best[0], self.directory.path / "best")
        summary = {
            "accuracy_before": self._accuracy_before,
            "accuracy_after": next(iter(metrics.values()), None),
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

    def _check_gap(self, gap: float) -> None:
        limit = self.config.algorithm.max_logprob_gap
        self._worst_gap = max(self._worst_gap, gap)
        if limit is not None and gap > limit:
            raise UserError(
                f"sampler and actor disagree: mean |log p difference| {gap:.2e} exceeds {limit:.2e}",
                where="algorithm.max_logprob_gap",
                fix="check dtype and versions on both sides, or raise the limit",
            )

    def _save(self, *, is_best: bool = False) -> None:
        self.turns.to_trainer()
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
        if is_best:
            self.directory.mark_best(self.step, self._best.record)

    def _restore(self, state: dict[str, Any]) -> None:
        self.inputs.stream.load_state_dict(state["stream"])
        self.credit.load_state_dict(state["credit"])
        self.step = self._saved_step = state["step"]
        self._accuracy_before = state["accuracy_before"]
        self._worst_gap = state["worst_gap"]
