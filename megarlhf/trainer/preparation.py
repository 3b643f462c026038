"""From the rows of a step to its batch and loss: what each method needs beside the model."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megarlhf.algo.preference_loss import REFERENCE
from megarlhf.algo.unpaired_loss import KL
from megarlhf.data.batches import batch_of, mismatched
from megarlhf.data.records import Batch, Example
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.data.reference_store import StoredLogprobs, write_logprobs
from megarlhf.data.store import StoredRows
from megarlhf.data.unpaired import DESIRABLE
from megarlhf.engine.loss import TokenLoss
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.engine.on_every_rank import on_every_rank
from megarlhf.parallel.launched import LaunchedRank

# From the rows of one step, the same on every rank, to its batch and loss. Collective.
Preparation = Callable[[Sequence[Example]], tuple[Batch, TokenLoss]]
# From a batch, the same on every rank, to a log-probability for each token. Collective.
Logprobs = Callable[[Batch], list[list[float]]]


@dataclass(frozen=True)
class Parts:
    """What a method finds when its run begins.

    Attributes:
        config: The configuration.
        engine: The model, as it is before the first step, whatever step the run goes on from.
        frozen_copy: Builds the same model once more, without an optimizer.
        rows: All rows of the run, held-out ones included.
        directory: ``output.dir``.
        launched: This rank.
    """

    config: Any
    engine: ModelEngine
    frozen_copy: Callable[[], ModelEngine]
    rows: Sequence[StoredRows]
    directory: Path
    launched: LaunchedRank


def with_loss(loss: TokenLoss) -> Preparation:
    """The rows as they are."""
    return lambda examples: (batch_of(examples), loss)


def logprobs_of(engine: ModelEngine) -> Logprobs:
    """What a model says, on every rank."""

    def logprobs(batch: Batch) -> list[list[float]]:
        found = engine.logprobs(batch.sequences, groups=batch.groups)
        return on_every_rank(found, batch.sequences, engine.device)

    return logprobs


def with_reference(loss: TokenLoss, reference: Logprobs | None) -> Preparation:
    """Every sequence with the reference's log-probabilities; without a reference, as it is."""
    if reference is None:
        return with_loss(loss)

    def prepare(examples: Sequence[Example]) -> tuple[Batch, TokenLoss]:
        batch = batch_of(examples)
        return _with_logprobs(batch, reference), loss

    return prepare


def reference_of(parts: Parts) -> Logprobs | None:
    """The reference that ``loss.reference`` asks for: the model before its first step."""
    return REFERENCES[parts.config.loss.reference](parts)


def _online(parts: Parts) -> Logprobs:
    return logprobs_of(parts.frozen_copy())


def _cached(parts: Parts) -> Logprobs:
    directory = parts.directory / "reference"
    if not parts.launched.first(directory.is_dir):
        found = _logprobs_of_rows(parts)
        if parts.launched.rank == 0:
            write_logprobs(directory, found)
        else:
            for _ in found:  # its passes are collective
                pass
        parts.launched.first(lambda: None)  # nobody reads before it is written
    stored = StoredLogprobs(directory)
    return lambda batch: stored(batch.sequences)


def _logprobs_of_rows(parts: Parts) -> Iterator[tuple[TokenSequence, list[float]]]:
    logprobs, size = logprobs_of(parts.engine), parts.config.train.batch_size
    for rows in parts.rows:
        for begin in range(0, len(rows), size):
            batch = batch_of(rows[begin : begin + size])
            yield from zip(batch.sequences, logprobs(batch), strict=True)


REFERENCES: dict[str, Callable[[Parts], Logprobs | None]] = {
    "online": _online,
    "cached": _cached,
    "none": lambda parts: None,
}


class WithReferencePoint:
    """Single answers with the reference's log-probabilities and KTO's reference point.

    The point z is an estimate of the KL from the policy to the reference, at least 0, over the
    whole global batch and without a gradient.

    Args:
        loss: The loss.
        policy: The model that is trained.
        reference: The model before its first step.
        estimate: A value of `POINTS`.
        max_tokens: ``data.max_tokens``.
    """

    def __init__(
        self,
        loss: TokenLoss,
        policy: Logprobs,
        reference: Logprobs,
        estimate: "Estimate",
        max_tokens: int,
    ) -> None:
        self._loss, self._policy, self._reference = loss, policy, reference
        self._estimate, self._max_tokens = estimate, max_tokens

    def __call__(self, examples: Sequence[Example]) -> tuple[Batch, TokenLoss]:
        """See `Preparation`."""
        batch = _with_logprobs(batch_of(examples), self._reference)
        points = self._estimate(self, examples, batch)
        sequences = [
            replace(sequence, values={**sequence.values, KL: point})
            for sequence, point in zip(batch.sequences, points, strict=True)
        ]
        return replace(batch, sequences=sequences), self._loss

    def from_mismatched(self, examples: Sequence[Example], own: Batch) -> list[float]:
        """From answers to other rows' prompts: the paper's estimate (section 4.1), one for all."""
        others = mismatched(examples, max_tokens=self._max_tokens)
        batch = Batch(others, [(index,) for index in range(len(others))])
        ratios = self._log_ratios(_with_logprobs(batch, self._reference))
        return [_mean_at_least_zero(ratios)] * len(own.sequences)

    def from_opposite(self, examples: Sequence[Example], own: Batch) -> list[float]:
        """For desirable answers from the undesirable ones of the batch, and the other way round.

        Of a batch without such answers, 0. As OpenRLHF's "vanilla" KTO does.
        """
        ratios = self._log_ratios(own)
        desirable = [sequence.values[DESIRABLE] for sequence in own.sequences]
        points = {
            kind: _mean_at_least_zero(
                [ratio for ratio, label in zip(ratios, desirable, strict=True) if label != kind]
            )
            for kind in (0.0, 1.0)
        }
        return [points[kind] for kind in desirable]

    def _log_ratios(self, batch: Batch) -> list[float]:
        """log p of each answer, less the reference's."""
        return [
            math.fsum(
                (mine - reference) * mask
                for mine, reference, mask in zip(
                    logprobs, sequence.fields[REFERENCE], sequence.loss_mask, strict=True
                )
            )
            for sequence, logprobs in zip(batch.sequences, self._policy(batch), strict=True)
        ]


Estimate = Callable[[WithReferencePoint, Sequence[Example], Batch], Sequence[float]]
POINTS: dict[str, Estimate] = {
    "mismatched": WithReferencePoint.from_mismatched,
    "opposite": WithReferencePoint.from_opposite,
    "none": lambda self, examples, own: [0.0] * len(own.sequences),
}


def _mean_at_least_zero(values: Sequence[float]) -> float:
    return max(0.0, math.fsum(values) / len(values)) if values else 0.0


def _with_logprobs(batch: Batch, reference: Logprobs) -> Batch:
    sequences = [
        replace(sequence, fields={**sequence.fields, REFERENCE: values})
        for sequence, values in zip(batch.sequences, reference(batch), strict=True)
    ]
    return replace(batch, sequences=sequences)
