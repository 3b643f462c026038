"""The axes of a chart: round ticks, their labels, and where a value lies in the picture."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from megarlhf.report.text import format_number, short_exponent

WIDTH, HEIGHT = 400, 200  # of a chart, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 8, 24  # margins around the plot, for tick labels


@dataclass(frozen=True)
class Axis:
    """Maps data from [low, high] to pixels from start to end."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[float]

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def step_axis(low: float, high: float) -> Axis:
    """The horizontal axis, exactly from low to high (one step gets the middle)."""
    if high - low < 1:
        low, high = low - 0.5, high + 0.5
    inside = [tick for tick in ticks(low, high, 5, smallest=1) if low <= tick <= high]
    return Axis(low, high, LEFT, WIDTH - RIGHT, inside)


def value_axis(values: Iterable[float], *, zero: bool) -> Axis:
    """The vertical axis: all values fit, both ends are ticks, 0 is on it if ``zero``."""
    values = [*values, 0.0] if zero else list(values)
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # all the same: room above and below
        room = abs(high) * 0.1 or 1.0
        low, high = low - room, high + room
    marks = ticks(low, high, 5)
    return Axis(marks[0], marks[-1], HEIGHT - BOTTOM, TOP, marks)


def frame(x: Axis, y: Axis) -> list[str]:
    """Grid lines with the labels of both axes."""
    shapes = [f'<text x="{LEFT - 12}" y="{HEIGHT - 8}" class="end">step</text>']
    for tick, label in zip(y.ticks, _tick_labels(y.ticks), strict=True):
        level = y.at(tick)
        kind = "base" if tick in (0, y.low) else "grid"
        shapes.append(f'<path class="{kind}" d="M{LEFT} {level:.1f}H{WIDTH - RIGHT}"/>')
        shapes.append(f'<text x="{LEFT - 6}" y="{level + 4:.1f}" class="end">{label}</text>')
    for tick, label in zip(x.ticks, _tick_labels(x.ticks), strict=True):
        shapes.append(f'<text x="{x.at(tick):.1f}" y="{HEIGHT - 8}" class="mid">{label}</text>')
    return shapes


def ticks(low: float, high: float, count: int, *, smallest: float = 0.0) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) that enclose low < high.

    Args:
        low: Lower end.
        high: Upper end.
        count: About so many intervals.
        smallest: Smallest distance of two ticks.
    """
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    gap = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    gap = max(gap, smallest)
    first, last = math.floor(low / gap + 1e-6), math.ceil(high / gap - 1e-6)
    return [index * gap for index in range(first, last + 1)]


def _tick_labels(values: Sequence[float]) -> list[str]:
    """As many decimals as tell the ticks apart; powers of ten where decimals would be long."""
    largest = max(map(abs, values), default=0.0)
    gap = values[1] - values[0] if len(values) > 1 else largest
    if largest >= 1e6 or 0 < largest < 1e-3:
        digits = 1 + math.floor(math.log10(largest)) - math.floor(math.log10(gap) + 1e-6)
        return [short_exponent(f"{value:.{digits}g}") if value else "0" for value in values]
    if largest >= 1e4 and gap >= 100:
        return [f"{format_number(value / 1000)}k" if value else "0" for value in values]
    decimals = max(0, -math.floor(math.log10(gap) + 1e-6)) if gap else 0
    return [f"{value:.{decimals}f}" if value else "0" for value in values]
