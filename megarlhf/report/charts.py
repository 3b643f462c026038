"""Charts as inline SVG: lines over steps, and bars stacked from parts.

A long curve is drawn from stretches of consecutive points: the line goes through their means, a
band shows their lowest and highest values, so a spike is never lost.

The pictures carry classes, no colours (those are in `megarlhf.report.style`): ``c0``..``c7`` for
the series in order. Nothing is scripted; hovering shows an SVG ``<title>`` and a guide line.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise

from megarlhf.report.axes import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    frame,
    step_axis,
    value_axis,
)
from megarlhf.report.text import format_number

MAX_POINTS = 120  # drawn points a curve
MAX_BARS = 60
MAX_DOTS = 30  # a curve of at most so many points shows each as a dot

Point = tuple[int, float | None]


@dataclass(frozen=True)
class Series:
    """One curve or one part of the bars.

    Attributes:
        label: Its name, not yet escaped.
        points: (step, value) with rising steps; None (not a finite number) leaves a gap.
    """

    label: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Stretch:
    """Consecutive points of a curve, drawn as one; the values are None if none is finite."""

    first: int
    last: int
    mean: float | None
    low: float | None
    high: float | None

    @property
    def middle(self) -> float:
        """Where it is drawn on the step axis."""
        return (self.first + self.last) / 2


def line_chart(series: Sequence[Series], *, zero: bool) -> str:
    """Curves over steps as an ``<svg>``; empty text when there is nothing to draw.

    Args:
        series: At most eight (there are no more colours).
        zero: The value axis includes 0.
    """
    curves = [(one.label, stretches(one.points, MAX_POINTS)) for one in series]
    drawn = [spot for _, curve in curves for spot in curve]
    values = [value for spot in drawn for value in (spot.low, spot.high) if value is not None]
    if not values:
        return ""
    x = step_axis(min(spot.first for spot in drawn), max(spot.last for spot in drawn))
    y = value_axis(values, zero=zero)
    shapes = frame(x, y)
    for index, (_, curve) in enumerate(curves):
        for run in _unbroken(curve):
            shapes += _band(run, index, x, y) + _line(run, index, x, y)
        if len(curve) <= MAX_DOTS:
            shapes += [_dot(spot, index, x, y) for spot in curve]
    return _svg([*shapes, *_hovers(curves, x, y)])


def stacked_chart(series: Sequence[Series], *, unit: str) -> str:
    """Bars over steps, each stacked from the series in order; empty text when there are none.

    With many steps a bar is the mean of several consecutive ones. Values must not be negative; a
    step that a series lacks, or None, counts as 0.
    """
    parts = [{step: value or 0.0 for step, value in one.points} for one in series]
    steps = sorted({step for part in parts for step in part})
    if not steps:
        return ""
    groups = _cut(steps, MAX_BARS)
    means = [[sum(part.get(s, 0.0) for s in g) / len(g) for part in parts] for g in groups]
    x = step_axis(steps[0] - 0.5, steps[-1] + 0.5)
    y = value_axis([sum(bar) for bar in means], zero=True)
    bars = []
    for group, bar in zip(groups, means, strict=True):
        left, right = x.at(group[0] - 0.5), x.at(group[-1] + 0.5)
        width = min(max((right - left) * 0.85, 0.5), 40.0)
        place = f'x="{(left + right - width) / 2:.1f}" width="{width:.1f}"'
        bars.append(f"<g><title>{escape(_bar_title(group, bar, series, unit))}</title>")
        base = 0.0
        for index, value in enumerate(bar):
            bottom, top = y.at(base), y.at(base + value)
            base += value
            if bottom - top >= 0.05:
                size = f'y="{top:.1f}" height="{bottom - top:.1f}"'
                bars.append(f'<rect class="bar c{index}" {place} {size}/>')
        bars.append("</g>")
    return _svg([*frame(x, y), *bars])


def stretches(points: Sequence[Point], limit: int) -> list[Stretch]:
    """The points in order as at most ``limit`` stretches of about the same length."""
    return [_stretch(group) for group in _cut(points, limit)]


def _unbroken(curve: Iterable[Stretch]) -> Iterator[list[Stretch]]:
    """The runs of a curve between its gaps."""
    for finite, run in groupby(curve, key=lambda spot: spot.mean is not None):
        if finite:
            yield list(run)


def _line(run: Sequence[Stretch], index: int, x: Axis, y: Axis) -> list[str]:
    points = [f"{x.at(spot.middle):.1f} {y.at(spot.mean):.1f}" for spot in run]
    # "h0": a run of one point still shows, since the stroke has round ends.
    return [f'<path class="line c{index}" d="M{"L".join(points)}h0"/>']


def _band(run: Sequence[Stretch], index: int, x: Axis, y: Axis) -> list[str]:
    if all(spot.low == spot.high for spot in run):
        return []
    upper = [f"{x.at(spot.middle):.1f} {y.at(spot.high):.1f}" for spot in run]
    lower = [f"{x.at(spot.middle):.1f} {y.at(spot.low):.1f}" for spot in reversed(run)]
    return [f'<path class="band c{index}" d="M{"L".join(upper + lower)}z"/>']


def _dot(spot: Stretch, index: int, x: Axis, y: Axis) -> str:
    if spot.mean is None:
        return ""
    place = f'cx="{x.at(spot.middle):.1f}" cy="{y.at(spot.mean):.1f}"'
    return f'<circle class="dot c{index}" {place} r="3.5"/>'


def _hovers(curves: Sequence[tuple[str, list[Stretch]]], x: Axis, y: Axis) -> list[str]:
    """Invisible strips side by side: each shows a guide line, dots and the values of its place."""
    found: dict[float, list[tuple[int, str, Stretch]]] = {}
    for index, (label, curve) in enumerate(curves):
        for spot in curve:
            found.setdefault(spot.middle, []).append((index, label, spot))
    places = sorted(found)
    centers = [x.at(place) for place in places]
    borders = [LEFT, *((a + b) / 2 for a, b in pairwise(centers)), WIDTH - RIGHT]
    shapes = []
    for place, center, (left, right) in zip(places, centers, pairwise(borders), strict=True):
        title = "; ".join(_spot_title(label, spot) for _, label, spot in found[place])
        dots = "".join(_dot(spot, index, x, y) for index, _, spot in found[place])
        shapes.append(
            f'<g class="hover"><title>{escape(title)}</title>'
            f'<rect x="{left:.1f}" y="{TOP}" width="{right - left:.1f}"'
            f' height="{HEIGHT - TOP - BOTTOM}"/>'
            f'<path d="M{center:.1f} {TOP}V{HEIGHT - BOTTOM}"/>{dots}</g>'
        )
    return shapes


def _spot_title(label: str, spot: Stretch) -> str:
    if spot.mean is None:
        return f"{_steps(spot.first, spot.last)}, {label}: not finite"
    text = f"{_steps(spot.first, spot.last)}, {label}: {format_number(spot.mean)}"
    if spot.low != spot.high:
        text += f" ({format_number(spot.low)} to {format_number(spot.high)})"
    return text


def _bar_title(
    group: Sequence[int], bar: Sequence[float], series: Sequence[Series], unit: str
) -> str:
    parts = [f"{s.label}: {format_number(v)} {unit}" for s, v in zip(series, bar, strict=True) if v]
    return "; ".join([_steps(group[0], group[-1]), *parts])


def _steps(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"mean of steps {first} to {last}"


def _stretch(points: Sequence[Point]) -> Stretch:
    first, last = points[0][0], points[-1][0]
    values = [value for _, value in points if value is not None]
    if not values:
        return Stretch(first, last, None, None, None)
    return Stretch(first, last, sum(values) / len(values), min(values), max(values))


def _cut(items: Sequence, limit: int) -> list[Sequence]:
    """The items in order as at most ``limit`` groups whose sizes differ by at most one."""
    size = max(1, math.ceil(len(items) / limit))
    count = math.ceil(len(items) / size)
    borders = [index * len(items) // count for index in range(count + 1)]
    return [items[start:stop] for start, stop in pairwise(borders)]


def _svg(shapes: Iterable[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(shapes)}</svg>'
