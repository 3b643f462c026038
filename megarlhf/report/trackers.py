"""Where metrics can be followed beside metrics.jsonl: TensorBoard, Weights & Biases."""

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Tracker(Protocol):
    """Follows a run's metrics."""

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Note the metrics of a step."""

    def forget_after(self, step: int) -> None:
        """The steps behind this one will be done again; called while nothing is open."""

    def close(self) -> None:
        """Let go of files and connections; the next `write` opens them again."""


class TensorBoard:
    """Scalars in ``directory/tensorboard/``.

    Args:
        directory: The run's output directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "tensorboard"
        self._writer: SummaryWriter | None = None
        self._purge_step: int | None = None

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """See `Tracker.write`."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # purge_step hides what an earlier process wrote for steps that are now done again.
            self._writer = SummaryWriter(str(self._directory), purge_step=self._purge_step)
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def forget_after(self, step: int) -> None:
        """See `Tracker.forget_after`."""
        self._purge_step = step + 1

    def close(self) -> None:
        """See `Tracker.close`."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WeightsAndBiases:
    """A run of a project there; one that goes on has the same one, whose name is kept in a file.

    What it sends where is for its own variables to say: WANDB_MODE, WANDB_BASE_URL, WANDB_API_KEY, ...

    Args:
        directory: The run's output directory.
        project: The project's name.
        config: The run's settings.
    """

    FILE = "wandb_run_id"

    def __init__(self, directory: Path, project: str, config: dict[str, Any]) -> None:
        self._directory, self._project, self._config = directory, project, config
        self._run: Any = None

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """See `Tracker.write`."""
        if self._run is None:
            self._run = self._open()
        self._run.log({"step": step, **metrics})

    def forget_after(self, step: int) -> None:
        """Nothing: what is logged for a step again counts there."""

    def close(self) -> None:
        """See `Tracker.close`."""
        if self._run is not None:
            self._run.finish()
            self._run = None

    def _open(self) -> Any:
        import wandb

        file = self._directory / self.FILE
        if not file.exists():
            file.write_text(uuid.uuid4().hex[:12])
        run = wandb.init(
            project=self._project,
            id=file.read_text(),
            name=self._directory.resolve().name,
            resume="allow",
            dir=self._directory,
            config=self._config,
            settings=wandb.Settings(console="off", silent=True),
        )
        run.define_metric("*", step_metric="step")
        return run
