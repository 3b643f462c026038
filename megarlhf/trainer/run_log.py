"""What a run writes for people and programs: terminal, metrics, rollouts, summary, report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megarlhf.config.settings import to_dict
from megarlhf.data.records import Sample
from megarlhf.report import jsonl
from megarlhf.report.html import write_report
from megarlhf.report.metrics import MetricsLog, RolloutLog
from megarlhf.report.progress import Progress
from megarlhf.report.trackers import TensorBoard, Tracker, WeightsAndBiases

EVALUATION_FILE = "evaluation.jsonl"
EVALUATION_ANSWERS = 64


class RunLog:
    """The logs of one run.

    Args:
        directory: ``output.dir``.
        config: The run's configuration.
        title: First line on the terminal, and the report's heading.
        total_steps: Steps of the whole run.
        done_steps: Steps done before this process; what was logged after them is dropped.
    """

    def __init__(
        self, directory: Path, config: Any, *, title: str, total_steps: int, done_steps: int
    ) -> None:
        self.directory, self._config, self._title = directory, config, title
        self.progress = Progress(total_steps, title, done_steps=done_steps)
        self._metrics = MetricsLog(directory, _trackers(directory, config))
        self._rollouts = RolloutLog(directory)
        kept = done_steps if done_steps > 0 else -1
        self._metrics.truncate_after(kept)
        self._rollouts.truncate_after(kept)
        jsonl.truncate_after(directory / EVALUATION_FILE, kept)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Log a finished step, with the seconds of its phases."""
        metrics = {**metrics, **self.progress.seconds()}
        self._metrics.write(step, metrics)
        self.progress.step_done(step, metrics)

    def point(self, step: int, metrics: dict[str, float]) -> None:
        """Log figures that belong to no training step (an evaluation before the first)."""
        self._metrics.write(step, metrics)

    def rollouts(self, step: int, groups: Sequence[Sequence[Sample]]) -> None:
        """Keep a few sampled rollouts: the first sample of the first prompts."""
        for group in groups[: self._config.output.sampled_rollouts]:
            sample = group[0]
            self._rollouts.write(
                step,
                prompt=sample.prompt.text,
                response=sample.text,
                label=sample.prompt.label,
                reward=sample.reward,
                finish_reason=sample.finish_reason,
            )

    def evaluation(self, step: int, name: str, groups: Sequence[Sequence[Sample]]) -> None:
        """Keep the first greedy answers to a set of held-out prompts, ids included."""
        for group in groups[:EVALUATION_ANSWERS]:
            sample = group[0]
            record = {
                "step": step,
                "prompt": sample.prompt.text,
                "response": sample.text,
                "prompt_ids": list(sample.prompt.token_ids),
                "response_ids": sample.response_ids,
                "label": sample.prompt.label,
                "reward": sample.reward,
                **({"set": name} if name else {}),
            }
            jsonl.append(self.directory / EVALUATION_FILE, record)

    def finish(self, summary: dict[str, Any], paths: dict[str, Path]) -> None:
        """Write ``report.html``, then ``summary.json``: all is there. Print the final table."""
        self._metrics.close()
        file = self.directory / "summary.json"
        report = write_report(
            self.directory,
            title=self._title,
            config=to_dict(self._config),
            summary=summary,
        )
        jsonl.replace_file(file, (json.dumps(summary, indent=2) + "\n").encode())
        rows = [(key, _shown(value)) for key, value in summary.items() if _is_scalar(value)]
        rows += [(f"seconds {key}", f"{s:.1f}") for key, s in summary["seconds"].items()]
        written = {**paths, "metrics": self.directory / MetricsLog.FILE, "summary": file}
        if self._config.output.tensorboard:
            written["tensorboard"] = self.directory / "tensorboard"
        rows += [(name, str(path)) for name, path in {**written, "report": report}.items()]
        self.progress.note("")
        self.progress.table(rows)


def _trackers(directory: Path, config: Any) -> list[Tracker]:
    trackers: list[Tracker] = [TensorBoard(directory)] if config.output.tensorboard else []
    if config.output.wandb is not None:
        trackers.append(WeightsAndBiases(directory, config.output.wandb, to_dict(config)))
    return trackers


def _is_scalar(value: Any) -> bool:
    return value is not None and not isinstance(value, dict | list)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
