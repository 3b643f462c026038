"""What losses have in common: what the engine divides their sums by."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch

from megarlhf.data.records import MicroBatch
from megarlhf.data.records import Sequence as TokenSequence

LOSS_WEIGHT = "loss_weight"


class Divisors(NamedTuple):
    """What sums over a whole global batch are divided by.

    Attributes:
        loss: Divides the loss.
        metrics: Divides its metrics,
        by_name: except those that have a divisor of their own here; 0 where nothing is summed.
    """

    loss: float
    metrics: float
    by_name: Mapping[str, float] = MappingProxyType({})

    def of(self, metric: str) -> float:
        """What divides a metric, or the ``loss``."""
        return self.loss if metric == "loss" else self.by_name.get(metric, self.metrics)


class TokenMean:
    """A loss that is a mean over tokens: how it is divided."""

    temperature: float
    from_logits = None  # it reads what the engine makes of the logits
    reads_trained_only = False

    def temperature_at(self, batch: MicroBatch) -> float | torch.Tensor:
        """The same for all tokens."""
        return self.temperature

    def divisors(self, sequences: Sequence[TokenSequence]) -> Divisors:
        """The total weight (the field ``loss_weight``; 1 a token without it) and the trained tokens.

        Args:
            sequences: The whole global batch.

        Raises:
            ValueError: No token is trained on.
        """
        tokens = math.fsum(math.fsum(sequence.loss_mask) for sequence in sequences)
        if tokens <= 0:
            raise ValueError("no token of the batch is trained on: every loss_mask is zero")
        weight = math.fsum(
            weight * mask
            for sequence in sequences
            for weight, mask in zip(
                sequence.fields.get(LOSS_WEIGHT, [1.0] * len(sequence.loss_mask)),
                sequence.loss_mask,
                strict=True,
            )
        )
        return Divisors(weight, tokens)


class SequenceMean(TokenMean):
    """A loss that is a mean over sequences; a sequence without a trained token is not counted."""

    def divisors(self, sequences: Sequence[TokenSequence]) -> Divisors:
        """The number of sequences, twice."""
        count = sum(any(sequence.loss_mask) for sequence in sequences)
        return Divisors(count, count)


class PairMean(TokenMean):
    """A loss that is a mean over pairs; a pair without a trained token is not counted."""

    def divisors(self, sequences: Sequence[TokenSequence]) -> Divisors:
        """The number of pairs, twice; every even sequence is the first of one."""
        count = sum(any(sequence.loss_mask) for sequence in sequences[::2])
        return Divisors(count, count)
