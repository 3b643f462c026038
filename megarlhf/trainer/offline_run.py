"""The parts of an offline run on one rank; only the first rank owns the directory and the logs."""

import math
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

from megarlhf.config.schema import SFTConfig
from megarlhf.data.records import Sequence
from megarlhf.data.supervised import SequenceStream
from megarlhf.engine import checkpoint
from megarlhf.engine.loss import TokenLoss
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.engine.schedule import learning_rate
from megarlhf.errors import UserError
from megarlhf.models.build import DTYPES
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.export import export_huggingface
from megarlhf.parallel.groups import make_groups
from megarlhf.parallel.launched import LaunchedRank
from megarlhf.parallel.topology import Topology
from megarlhf.trainer.run_directory import RunDirectory
from megarlhf.trainer.run_log import RunLog


class OfflineRun:
    """One rank of an offline run.

    Args:
        config: The configuration.
        spec: The model.
        topology: Its layout.
        stream: The rows.
        total_steps: Optimizer steps of the whole run.
        launched: This rank.

    Attributes:
        step: Optimizer steps taken.
    """

    def __init__(
        self,
        config: SFTConfig,
        spec: ModelSpec,
        topology: Topology,
        stream: SequenceStream,
        total_steps: int,
        launched: LaunchedRank,
    ) -> None:
        self.config, self.spec, self.topology, self.stream = config, spec, topology, stream
        self.total_steps, self.launched = total_steps, launched
        self.step = 0
        self._saved_step = 0  # what is there before the first step needs no saving
        self._last_loss: float | None = None
        self._exit = ExitStack()
        self._directory: RunDirectory | None = None
        self.log: RunLog | None = None

    def __enter__(self) -> "OfflineRun":
        def claim() -> tuple[Path, dict[str, Any]] | None:
            self._directory = self._exit.enter_context(RunDirectory("sft", self.config))
            newest = self._directory.newest_checkpoint()
            return (newest.directory, newest.state) if newest else None

        self._found = self.launched.first(claim)
        if self._found is not None:
            _, state = self._found
            self.stream.load_state_dict(state["stream"])
            self.step = self._saved_step = state["step"]
            self._last_loss = state["loss"]
        if self._directory is not None:
            self.log = RunLog(
                self._directory.path,
                self.config,
                title=f"sft on {self.config.model.path}",
                total_steps=self.total_steps,
                done_steps=self.step,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit.close()

    def begin(self) -> None:
        """Build and load the model; go on from the newest checkpoint."""
        with self._phase("start", setup=True):
            groups = make_groups(self.topology, self.config.train.seed)
            self.engine = ModelEngine(
                self.spec,
                self.config.model,
                self.topology,
                groups,
                self.launched.rank,
                micro_batch_tokens=self.config.train.micro_batch_tokens,
                optimizer=self.config.optimizer,
            )
            if self._found is not None:
                checkpoint.load(self.engine, self._found[0])
        if self.step:
            self._note(f"going on after step {self.step}")

    def train_step(self, batch: list[Sequence], loss: TokenLoss) -> None:
        """One optimizer step; save where it is due."""
        lr = learning_rate(self.config.optimizer, self.step, self.total_steps)
        with self._phase("train"):
            metrics = self.engine.train_step(batch, loss, lr=lr)
        if not math.isfinite(metrics["loss"]):
            raise UserError(
                f"the loss of step {self.step + 1} is not a finite number",
                fix="lower optimizer.lr; the newest checkpoint in output.dir is intact",
            )
        self.step += 1
        self._last_loss = metrics["loss"]
        if self.config.train.save_every and self.step % self.config.train.save_every == 0:
            with self._phase("save"):
                self._save()
        if self.log is not None:
            self.log.step(self.step, metrics)

    def finish(self, *, interrupted: bool) -> dict[str, Any]:
        """Save; if the run is complete, export too. Returns the summary."""
        if self._saved_step != self.step:
            with self._phase("save", setup=True):
                self._save()
        if interrupted:
            self._note(f"stopped after step {self.step}; the same command goes on from there")
            return {"interrupted": True, "steps": self.step}
        model = Path(self.config.output.dir) / "model"
        with self._phase("export", setup=True):
            export_huggingface(
                self.spec,
                self.topology,
                self.launched.rank,
                self.engine.chunks,
                model,
                DTYPES[self.config.model.dtype],
            )
        summary: dict[str, Any] = {"loss": self._last_loss, "steps": self.step}
        if self.log is not None:
            totals = self.log.progress.totals()
            summary["seconds"] = {name: round(seconds, 2) for name, seconds in totals.items()}
            self.log.finish(summary, {"checkpoint": model})
        return summary

    def _save(self) -> None:
        directory = self.launched.first(
            lambda: self._directory.begin_checkpoint(self.step) if self._directory else None
        )
        checkpoint.save(self.engine, directory)
        if self._directory is not None:
            state = {
                "step": self.step,
                "stream": self.stream.state_dict(),
                "loss": self._last_loss,
            }
            self._directory.commit_checkpoint(directory, state)
        self._saved_step = self.step

    def _phase(self, name: str, *, setup: bool = False) -> AbstractContextManager[None]:
        return self.log.progress.phase(name, setup=setup) if self.log else nullcontext()

    def _note(self, text: str) -> None:
        if self.log is not None:
            self.log.progress.note(text)
