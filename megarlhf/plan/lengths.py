"""How lengths are spread of which only the mean and the longest are known."""

import math
from dataclasses import dataclass
from functools import cached_property

FLAT = 1e-3  # a slope that is none, times the longest


@dataclass(frozen=True)
class Lengths:
    """The distribution that assumes least beside them, of largest entropy: its density falls or rises
    as exp(-slope t) on [0, longest].

    (Cover and Thomas 2006, "Elements of information theory", theorem 12.1.1.) With a mean as large as
    the longest all have the longest.

    Attributes:
        mean: Tokens.
        longest: Tokens.
    """

    mean: float
    longest: float

    @property
    def are_equal(self) -> bool:
        """Whether all are the longest."""
        return self.mean >= self.longest

    @cached_property
    def _slope(self) -> float:
        """Times ``longest``; by bisection: the mean falls with it."""
        low, high = -700.0, 700.0
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if self._mean_at(middle) > self.mean else (low, middle)
        return low

    def _mean_at(self, slope: float) -> float:
        if abs(slope) < FLAT:
            return self.longest / 2
        return self.longest * (1 / slope - 1 / math.expm1(slope))

    def longer_than(self, tokens: float) -> float:
        """The share of those that are longer."""
        if tokens >= self.longest:
            return 0.0
        if self.are_equal:
            return 1.0
        slope, part = self._slope, tokens / self.longest
        if abs(slope) < FLAT:
            return 1 - part
        return (math.exp(-slope * part) - math.exp(-slope)) / -math.expm1(-slope)

    @cached_property
    def mean_square(self) -> float:
        """Tokens squared: what attention's work and an engine's reading of keys and values grow with."""
        if self.are_equal:
            return float(self.longest**2)
        slope = self._slope
        if abs(slope) < FLAT:
            return self.longest**2 / 3
        # Twice the integral of t times the share that is longer.
        rest = math.exp(-slope) * (slope * slope + 2 * slope + 2)
        return self.longest**2 * (2 - rest) / (slope * slope * -math.expm1(-slope))
