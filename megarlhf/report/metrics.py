"""The two files a run leaves behind for programs: metrics.jsonl and rollouts.jsonl.

A new run starts with an empty directory; a run resumed from step k calls ``truncate_after(k)``
on both logs and then writes step k+1, so every step is there once.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megarlhf.report import jsonl
from megarlhf.report.trackers import Tracker


class MetricsLog:
    """One JSON line a step in ``directory/metrics.jsonl``, and the same to trackers.

    Args:
        directory: The run's output directory; created if missing.
        trackers: Who else is told.
    """

    FILE = "metrics.jsonl"

    def __init__(self, directory: str | Path, trackers: Sequence[Tracker] = ()) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._trackers = trackers

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append ``{"step": step, "time": unix seconds, **metrics}``; null where not finite.

        Raises:
            TypeError: ``metrics`` has a key "step" or "time".
        """
        record = dict(step=step, time=round(time.time(), 3), **metrics)
        jsonl.append(self._directory / self.FILE, record)
        for tracker in self._trackers:
            tracker.write(step, metrics)

    def truncate_after(self, step: int) -> None:
        """Forget all steps > ``step`` (and a line cut short): the run goes on from there."""
        jsonl.truncate_after(self._directory / self.FILE, step)
        self.close()
        for tracker in self._trackers:
            tracker.forget_after(step)

    def close(self) -> None:
        """Close the trackers; the next ``write`` opens them again."""
        for tracker in self._trackers:
            tracker.close()

    @classmethod
    def read(cls, directory: str | Path) -> list[dict[str, Any]]:
        """The complete lines of ``directory/metrics.jsonl`` in order; empty without the file."""
        return jsonl.read(Path(directory) / cls.FILE)


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
