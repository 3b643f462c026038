"""The two files a run leaves behind for programs: metrics.jsonl and rollouts.jsonl.

A new run starts with an empty directory; a run resumed from step k calls ``truncate_after(k)``
on both logs and then writes step k+1, so every step is there once.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megarlhf.report import jsonl

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class MetricsLog:
    """One JSON line a step in ``directory/metrics.jsonl``, and TensorBoard scalars if wanted.

    Args:
        directory: The run's output directory; created if missing.
        tensorboard: Also write scalars into ``directory/tensorboard/``.
    """

    FILE = "metrics.jsonl"

    def __init__(self, directory: str | Path, *, tensorboard: bool) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._tensorboard = tensorboard
        self._writer: SummaryWriter | None = None
        self._purge_step: int | None = None

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append ``{"step": step, "time": unix seconds, **metrics}``; null where not finite.

        Raises:
            TypeError: ``metrics`` has a key "step" or "time".
        """
        record = dict(step=step, time=round(time.time(), 3), **metrics)
        jsonl.append(self._directory / self.FILE, record)
        if self._tensorboard:
            writer = self._open_writer()
            for key, value in metrics.items():
                writer.add_scalar(key, value, step)
            writer.flush()

    def truncate_after(self, step: int) -> None:
        """Forget all steps > ``step`` (and a line cut short): the run goes on from there."""
        jsonl.truncate_after(self._directory / self.FILE, step)
        self.close()
        self._purge_step = step + 1

    def close(self) -> None:
        """Close the TensorBoard file, if one is open; the next ``write`` opens a new one."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    @classmethod
    def read(cls, directory: str | Path) -> list[dict[str, Any]]:
        """The complete lines of ``directory/metrics.jsonl`` in order; empty without the file."""
        return jsonl.read(Path(directory) / cls.FILE)

    def _open_writer(self) -> "SummaryWriter":
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # purge_step hides what an earlier process wrote for steps that are now done again.
            self._writer = SummaryWriter(
                str(self._directory / "tensorboard"), purge_step=self._purge_step
            )
        return self._writer


class RolloutLog:
    """Sampled rollouts for people to read, one JSON line each, in ``directory/rollouts.jsonl``."""

    FILE = "rollouts.jsonl"

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)

    def write(
        self,
        step: int,
        *,
        prompt: str,
        response: str,
        label: Any,
        reward: float | None,
        finish_reason: str,
    ) -> None:
        """Append one rollout; ``label`` is any JSON value (others are written as their text)."""
        record = {
            "step": step,
            "prompt": prompt,
            "response": response,
            "label": label,
            "reward": reward,
            "finish_reason": finish_reason,
        }
        jsonl.append(self._directory / self.FILE, record)

    def truncate_after(self, step: int) -> None:
        """Forget all steps > ``step`` (and a line cut short): the run goes on from there."""
        jsonl.truncate_after(self._directory / self.FILE, step)

    @classmethod
    def read(cls, directory: str | Path) -> list[dict[str, Any]]:
        """The complete lines of ``directory/rollouts.jsonl`` in order; empty without the file."""
        return jsonl.read(Path(directory) / cls.FILE)
