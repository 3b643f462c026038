"""A plan as one self-contained HTML page: the step's timeline, and the memory of every phase."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from megarlhf.plan.hardware import GIB
from megarlhf.plan.making import Plan
from megarlhf.plan.memory import (
    BUCKETS,
    CACHE,
    ENGINE_WEIGHTS,
    OVERHEAD,
    TIGHT,
    Place,
)
from megarlhf.report.jsonl import replace_file
from megarlhf.report.style import STYLE
from megarlhf.report.text import format_seconds

WIDTH, LEFT, ROW = 900, 150, 26  # SVG units: the picture, its labels, a row

# The colours in order; every kind of memory is of one of these.
FAMILIES = (
    ("weights", ("weights", "reference weights", ENGINE_WEIGHTS)),
    ("gradients", ("gradients",)),
    ("optimizer and main parameters", ("optimizer", "main parameters")),
    ("activations", ("activations",)),
    ("logits", ("logits",)),
    ("KV cache", (CACHE,)),
    ("stream buckets", (BUCKETS,)),
    ("overhead", (OVERHEAD, "buffers")),
)


def write_page(plan: Plan, advice: Sequence[str], file: Path) -> None:
    """Write the page; it loads nothing and runs no script."""
    title = f"Plan of {plan.subject.name}: {plan.verdict}"
    phase, what = plan.bottleneck
    figures = {
        "GPUs used": f"{plan.used_gpus} of {plan.subject.gpus} {plan.subject.gpu.name}",
        "a step": format_seconds(plan.seconds),
        "tokens/s/GPU": f"{plan.tokens_a_second:,.0f}",
        "MFU of training": f"{plan.mfu:.0%}",
        "bottleneck": f"{phase}: {what}",
    }
    tiles = "".join(
        f'<div class="wide"><small>{escape(name)}</small><b>{escape(text)}</b></div>'
        for name, text in figures.items()
    )
    notes = "".join(f"<p>{escape(line)}</p>" for line in (*advice, *plan.notes))
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{STYLE}</style></head>
<body><h1>{escape(title)}</h1><div class="tiles">{tiles}</div>
<h2>One step</h2><figure>{_timeline(plan)}</figure>
<h2>Memory by phase <small>GiB a GPU; lines: {TIGHT:.0%} and all of it</small></h2>{_legend()}
{"".join(_memory(place) for place in plan.places)}
<h2>Notes</h2>{notes}
</body></html>
"""
    replace_file(file, page.encode())


def _timeline(plan: Plan) -> str:
    rows = list(dict.fromkeys(span.where for span in plan.spans))
    names = list(dict.fromkeys(span.name.split()[0] for span in plan.spans))
    scale = (WIDTH - LEFT) / plan.seconds
    shapes = [_label(row, index) for index, row in enumerate(rows)]
    for span in plan.spans:
        parts = ", ".join(f"{name} {s:.1f} s" for name, s in span.parts.items())
        shapes.append(
            _bar(
                LEFT + span.begin * scale,
                span.seconds * scale,
                rows.index(span.where),
                names.index(span.name.split()[0]),
                f"{span.name}: {span.seconds:.1f} s ({parts})",
            )
        )
    return _svg(shapes, len(rows)) + _keys(names)


def _memory(place: Place) -> str:
    most = max(place.memory, place.peak)
    scale = (WIDTH - LEFT) / most
    shapes = []
    for row, (phase, kinds) in enumerate(place.phases.items()):
        shapes.append(_label(f"{phase} {sum(kinds.values()) / GIB:.1f}", row))
        begin = float(LEFT)
        for colour, (_, members) in enumerate(FAMILIES):
            for kind in members:
                width = kinds.get(kind, 0) * scale
                if width > 0:
                    text = f"{kind}: {kinds[kind] / GIB:.2f} GiB"
                    shapes.append(_bar(begin, width, row, colour, text))
                    begin += width
    for share in (TIGHT, 1.0):
        x = LEFT + place.memory * share * scale
        shapes.append(f'<path class="base" d="M{x:.1f} 0V{len(place.phases) * ROW}"/>')
    problem = f" {escape(place.problem)}" if place.problem else ""
    host = f"; {place.host / GIB:.1f} GiB of the host's memory each" if place.host else ""
    text = f"{place.gpus} GPUs: {place.verdict}{problem}{host}"
    caption = f"{escape(place.name)} <small>{text}</small>"
    svg = _svg(shapes, len(place.phases))
    return f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"


def _bar(left: float, width: float, row: int, colour: int, title: str) -> str:
    place = f'x="{left:.1f}" y="{row * ROW + 3}" width="{max(width, 0.5):.1f}" height="{ROW - 6}"'
    return f'<rect class="bar c{colour % 8}" {place}><title>{escape(title)}</title></rect>'


def _label(text: str, row: int) -> str:
    return f'<text class="end" x="{LEFT - 8}" y="{row * ROW + 17}">{escape(text)}</text>'


def _svg(shapes: Iterable[str], rows: int) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {rows * ROW}">{"".join(shapes)}</svg>'


def _legend() -> str:
    return _keys([name for name, _ in FAMILIES])


def _keys(names: Iterable[str]) -> str:
    keys = (f'<span><i class="c{i % 8}"></i>{escape(name)}</span>' for i, name in enumerate(names))
    return f'<div class="legend">{"".join(keys)}</div>'
