"""The parts of an offline run on one rank; only the first rank owns the directory and the logs."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

from megarlhf.config.schema import OfflineConfig, OptimizerConfig
from megarlhf.data.records import Batch, Example
from megarlhf.engine import checkpoint
from megarlhf.engine.before_training import before_training
from megarlhf.engine.loss import TokenLoss
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.engine.result import write_result
from megarlhf.engine.schedule import learning_rate
from megarlhf.models.build import DTYPES
from megarlhf.parallel.groups import make_groups
from megarlhf.parallel.launched import LaunchedRank
from megarlhf.trainer.best_checkpoint import BestCheckpoint
from megarlhf.trainer.offline_inputs import OfflineInputs
from megarlhf.trainer.preparation import Parts
from megarlhf.trainer.run_directory import RunDirectory
from megarlhf.trainer.run_log import RunLog
from megarlhf.trainer.skipped_steps import SKIPPED, SkippedSteps


class OfflineRun:
    """One rank of an offline run.

    Args:
        config: The configuration.
        inputs: What it names.
        launched: This rank.

    Attributes:
        step: Optimizer steps taken.
        total_steps: Of the whole run.
    """

    def __init__(
        self, config: OfflineConfig, inputs: OfflineInputs, launched: LaunchedRank
    ) -> None:
        self.config, self.inputs, self.launched = config, inputs, launched
        self.total_steps = inputs.total_steps
        self.step = 0
        self._saved_step = 0  # what is there before the first step needs no saving
        self._figures: dict[str, float | None] = {"loss": None}  # what the summary will say
        self._exit = ExitStack()
        self._directory: RunDirectory | None = None
        self.log: RunLog | None = None

    def __enter__(self) -> "OfflineRun":
        name = self.inputs.method.name

        def claim() -> tuple[tuple[Path, dict[str, Any]] | None, dict[str, Any] | None]:
            self._directory = self._exit.enter_context(RunDirectory(name, self.config))
            newest, best = self._directory.checkpoints.newest(), self._directory.checkpoints.best()
            found = (newest.directory, newest.state) if newest else None
            return found, best[1] if best else None

        self._found, best = self.launched.first(claim)
        train = self.config.train
        self._best = BestCheckpoint(train, best)
        owned = None if self._directory is None else self._directory.path
        self._skipped = SkippedSteps(owned, "model", train.max_skipped_steps, self._note)
        if self._found is not None:
            _, state = self._found
            self._skipped.load_state_dict(state["skipped"])
            self.inputs.stream.load_state_dict(state["stream"])
            self.step = self._saved_step = state["step"]
            self._figures = state["figures"]
        if self._directory is not None:
            self.log = RunLog(
                self._directory.path,
                self.config,
                title=f"{name} on {self.config.model.path}",
                total_steps=self.total_steps,
                done_steps=self.step,
            )
            self._report_rows()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit.close()

    def begin(self) -> None:
        """Build and load the model; go on from the newest checkpoint, or evaluate it as it is."""
        with self._phase("start", setup=True):
            groups = make_groups(self.inputs.topology, self.config.train.seed)
            self.engine = self._build(groups, self.config.optimizer)
            held_out = self.inputs.held_out
            self._prepare = self.inputs.method.preparation(
                Parts(
                    config=self.config,
                    engine=self.engine,
                    frozen_copy=lambda: before_training(self.engine, lambda: self._build(groups)),
                    rows=(self.inputs.rows, *([] if held_out is None else [held_out])),
                    directory=Path(self.config.output.dir),
                    launched=self.launched,
                )
            )
            if self._found is not None:
                checkpoint.load(self.engine, self._found[0])
        if self.step:
            self._note(f"going on after step {self.step}")
        elif self.inputs.held_out is not None:
            with self._phase("evaluate", setup=True):
                metrics = self._evaluate("before")
            self._best.check(metrics)
            if self.log is not None:
                self.log.point(0, metrics)

    def train_step(self, examples: Sequence[Example]) -> None:
        """One optimizer step; evaluate and save where it is due."""
        lr = learning_rate(self.config.optimizer, self.step, self.total_steps)
        with self._phase("prepare"):
            batch, loss = self._prepare(examples)
        with self._phase("train"):
            metrics = self.engine.train_step(batch.sequences, loss, lr=lr, groups=batch.groups)
        self._skipped.see(f"step {self.step + 1}", batch.sequences, metrics)
        self.step += 1
        if not metrics[SKIPPED]:
            self._figures["loss"] = metrics["loss"]
        is_best, written = False, None
        if self.inputs.held_out is not None and self._is_due(self.config.train.eval_every):
            with self._phase("evaluate"):
                metrics |= self._evaluate("after")
            is_best = self._best.beaten_by(metrics)
        every = self.config.train.save_every
        if is_best or (every and self.step % every == 0):
            with self._phase("save"):
                written = self._write_checkpoint()
        if self.log is not None:  # before the checkpoint counts: see `RLRun.finish_step`
            self.log.step(self.step, metrics)
        if written is not None:
            self._commit_checkpoint(written, self._best.record if is_best else None)

    def finish(self, *, interrupted: bool) -> dict[str, Any]:
        """Save; if the run is complete, export too. Returns the summary."""
        if self._saved_step != self.step:
            with self._phase("save", setup=True):
                self._commit_checkpoint(self._write_checkpoint())
        if interrupted:
            self._note(f"stopped after step {self.step}; the same command goes on from there")
            return {"interrupted": True, "steps": self.step}
        summary: dict[str, Any] = {**self._figures, "steps": self.step}
        model = Path(self.config.output.dir) / self.config.lora.result
        best = self.launched.first(
            lambda: self._directory.checkpoints.best() if self._directory else None
        )
        with self._phase("export", setup=True):
            self._export(model)
            if best is not None and self.config.output.export_best:
                checkpoint.load(self.engine, best[0])
                self._export(model.with_name("best"))
        if best is not None:
            summary |= {"best_step": best[1]["step"], "best": best[1]["value"]}
        if self.log is not None:
            totals = self.log.progress.totals()
            summary["seconds"] = {name: round(seconds, 2) for name, seconds in totals.items()}
            self.log.finish(summary, {"checkpoint": model})
        return summary

    def _build(self, groups: Any, optimizer: OptimizerConfig | None = None) -> ModelEngine:
        return ModelEngine(
            self.inputs.spec,
            self.config.model,
            self.inputs.topology,
            groups,
            self.launched.rank,
            micro_batch_tokens=self.config.train.micro_batch_tokens,
            optimizer=optimizer,
            adapters=self.inputs.adapters,
        )

    def _export(self, directory: Path) -> None:
        write_result(self.engine, directory, DTYPES[self.config.model.dtype])

    def _is_due(self, every: int) -> bool:
        """Whether something is due that happens every so many steps and after the last."""
        return self.step == self.total_steps or (every > 0 and self.step % every == 0)

    def _evaluate(self, when: str) -> dict[str, float]:
        """The metrics of the held-out rows; the summary gets the one that judges the method."""
        metrics = self.engine.evaluate(self._held_out_batches())
        judged_by = self.inputs.method.judged_by
        self._figures[f"eval_{judged_by}_{when}"] = metrics[judged_by]
        return {f"eval_{name}": value for name, value in metrics.items()}

    def _held_out_batches(self) -> Iterator[tuple[Batch, TokenLoss]]:
        """All held-out rows, in batches of ``train.batch_size`` or, to come out even, a little more."""
        rows = self.inputs.held_out
        count = max(1, len(rows) // self.config.train.batch_size)
        for number in range(count):
            part = slice(number * len(rows) // count, (number + 1) * len(rows) // count)
            yield self._prepare(rows[part])

    def _write_checkpoint(self) -> Path:
        directory = self.launched.first(
            lambda: self._directory.checkpoints.begin(self.step) if self._directory else None
        )
        checkpoint.save(self.engine, directory)
        return directory

    def _commit_checkpoint(self, directory: Path, best: dict[str, Any] | None = None) -> None:
        if self._directory is not None:
            state = {
                "step": self.step,
                "stream": self.inputs.stream.state_dict(),
                "figures": self._figures,
                "skipped": self._skipped.state_dict(),
            }
            self._directory.checkpoints.commit(directory, state, best)
        self._saved_step = self.step

    def _report_rows(self) -> None:
        for name, rows in (("train", self.inputs.rows), ("eval", self.inputs.held_out)):
            for line in [] if rows is None else rows.report.lines():
                self._note(f"{name}: {line}")

    def _phase(self, name: str, *, setup: bool = False) -> AbstractContextManager[None]:
        return self.log.progress.phase(name, setup=setup) if self.log else nullcontext()

    def _note(self, text: str) -> None:
        if self.log is not None:
            self.log.progress.note(text)
