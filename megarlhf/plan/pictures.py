"""The pictures of a plan: the timeline of a step, and the memory of every phase, as SVG."""

from collections.abc import Iterable, Sequence
from html import escape

from megarlhf.plan.hardware import GIB
from megarlhf.plan.places import BUCKETS, CACHE, ENGINE_WEIGHTS, TIGHT, Place
from megarlhf.plan.timeline import Span
from megarlhf.plan.usage import LESSONS
from megarlhf.report.axes import ticks
from megarlhf.report.text import format_number, format_seconds

WIDTH, ROW, AXIS = 900, 26, 18  # SVG units: the picture, a row, the labels of the axis below
GAP = 0.8  # between bars
LETTER = 6.4  # of a label, about
LEAST = 90  # for the labels on the left

# The colours in order; a kind of memory that none of them names is the last one's.
FAMILIES = (
    (
        "weights",
        ("weights", "reference weights", "teacher weights", "average weights", ENGINE_WEIGHTS),
    ),
    ("gradients", ("gradients",)),
    ("optimizer and main parameters", ("optimizer", "main parameters")),
    ("activations", ("activations",)),
    ("logits", ("logits", LESSONS)),
    ("KV cache", (CACHE,)),
    ("stream buckets", (BUCKETS,)),
    ("overhead", ()),
)
COLOURS = {kind: number for number, (_, kinds) in enumerate(FAMILIES) for kind in kinds}


def timeline(spans: Sequence[Span]) -> str:
    """A row for each group of GPUs, a bar for each phase on them, seconds below."""
    rows = list(dict.fromkeys(span.where for span in spans))
    totals: dict[str, float] = {}
    for span in spans:
        name = span.name.split()[0]
        totals[name] = totals.get(name, 0.0) + span.seconds
    names = list(totals)
    frame = _Frame(rows, max(span.begin + span.seconds for span in spans), "s")
    bars = []
    for span in spans:
        parts = ", ".join(f"{name} {s:.1f} s" for name, s in span.parts.items())
        title = f"{span.name}: {span.seconds:.1f} s ({parts})"
        colour = names.index(span.name.split()[0])
        bars.append(frame.bar(span.begin, span.seconds, rows.index(span.where), colour, title))
    return frame.svg(bars) + keys(f"{name} {format_seconds(s)}" for name, s in totals.items())


def memory(place: Place) -> str:
    """A row for each phase, a bar for each kind; lines where it is tight and where it is full."""
    rows = [f"{phase} {sum(kinds.values()) / GIB:.1f}" for phase, kinds in place.phases.items()]
    frame = _Frame(rows, max(place.memory, place.peak) / GIB, "GiB")
    bars = []
    for row, kinds in enumerate(place.phases.values()):
        begin = 0.0
        for kind in sorted(kinds, key=_colour):
            size = kinds[kind] / GIB
            if size > 0:
                bars.append(frame.bar(begin, size, row, _colour(kind), f"{kind}: {size:.2f} GiB"))
                begin += size
    lines = [frame.line(place.memory / GIB * share) for share in (TIGHT, 1.0)]
    return frame.svg([*bars, *lines])


def legend() -> str:
    """The colours of memory."""
    return keys(name for name, _ in FAMILIES)


def keys(names: Iterable[str]) -> str:
    """Names by colour."""
    items = (f'<span><i class="c{i % 8}"></i>{escape(name)}</span>' for i, name in enumerate(names))
    return f'<div class="legend">{"".join(items)}</div>'


def _colour(kind: str) -> int:
    return COLOURS.get(kind, len(FAMILIES) - 1)


class _Frame:
    """Rows with labels, over an axis from 0.

    Args:
        labels: Of the rows.
        most: What ends at the right.
        unit: Of the axis.
    """

    def __init__(self, labels: Sequence[str], most: float, unit: str) -> None:
        self._labels, self._most, self._unit = labels, most, unit
        self._left = max(LEAST, LETTER * max(map(len, labels)) + 12)
        self._scale = (WIDTH - self._left - 30) / most  # half a tick's label is right of the end

    def bar(self, begin: float, size: float, row: int, colour: int, title: str) -> str:
        """From ``begin``, ``size`` long."""
        left, width = self._at(begin), max(size * self._scale - GAP, 0.5)
        where = f'x="{left:.1f}" y="{row * ROW + 3}" width="{width:.1f}" height="{ROW - 6}"'
        return f'<rect class="bar c{colour % 8}" {where}><title>{escape(title)}</title></rect>'

    def line(self, value: float) -> str:
        """Down all rows."""
        return f'<path class="mark" d="M{self._at(value):.1f} 0V{len(self._labels) * ROW}"/>'

    def svg(self, shapes: Sequence[str]) -> str:
        """The picture."""
        bottom = len(self._labels) * ROW
        around = [
            f'<text class="end" x="{self._left - 8:.1f}" y="{row * ROW + 17}">{escape(label)}</text>'
            for row, label in enumerate(self._labels)
        ]
        marks = [tick for tick in ticks(0.0, self._most, 8) if tick <= self._most]
        for mark in marks:
            around.append(f'<path d="M{self._at(mark):.1f} 0V{bottom}"/>')
            text = format_number(mark) + (f" {self._unit}" if mark == marks[-1] else "")
            x, y = self._at(mark), bottom + 13
            around.append(f'<text class="mid" x="{x:.1f}" y="{y}">{text}</text>')
        content = "".join([*around, *shapes])
        return f'<svg viewBox="0 0 {WIDTH} {bottom + AXIS}">{content}</svg>'

    def _at(self, value: float) -> float:
        return self._left + value * self._scale
