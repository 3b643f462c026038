"""Which checkpoint is the best so far, by a metric of the evaluations."""

import math
from collections.abc import Mapping
from typing import Any

from megarlhf.config.learning_checks import check_best
from megarlhf.config.schema import TrainConfig


class BestCheckpoint:
    """Compares evaluations; the same on every rank that sees the same metrics.

    Args:
        train: Names the metric and says which of its values is better.
        record: Of the best one so far: see `RunDirectory.best`. One by another metric is forgotten.

    Attributes:
        record: ``{"metric": name, "value": ...}`` of the best, None before there is one.
    """

    def __init__(self, train: TrainConfig, record: Mapping[str, Any] | None) -> None:
        self._train = train
        same = record is not None and record["metric"] == train.best_metric
        self.record: dict[str, Any] | None = dict(record) if record is not None and same else None

    def check(self, metrics: Mapping[str, float]) -> None:
        """Refuse a metric that an evaluation does not measure.

        Raises:
            UserError: It does not.
        """
        check_best(self._train, [*metrics])

    def beaten_by(self, metrics: Mapping[str, float]) -> bool:
        """Whether an evaluation is better than all before; it is the best from now on.

        The first of equals stays the best.
        """
        metric = self._train.best_metric
        if metric is None or not math.isfinite(metrics.get(metric, math.nan)):
            return False
        sign = 1.0 if self._train.best_is == "highest" else -1.0
        if self.record is not None and not sign * metrics[metric] > sign * self.record["value"]:
            return False
        self.record = {"metric": metric, "value": metrics[metric]}
        return True
