"""A plan as one self-contained HTML page: the step's timeline, and the memory of every phase."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from megarlhf.plan.hardware import GIB
from megarlhf.plan.pictures import legend, memory, timeline
from megarlhf.plan.places import TIGHT, Place
from megarlhf.plan.result import Plan
from megarlhf.report.jsonl import replace_file
from megarlhf.report.style import STYLE
from megarlhf.report.text import format_seconds


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
<h2>One step</h2><figure>{timeline(plan.spans)}</figure>
<h2>Memory by phase <small>of each GPU; lines: {TIGHT:.0%} and all of it</small></h2>{legend()}
<div class="rows">{"".join(_place(place) for place in plan.places)}</div>
<h2>Notes</h2>{notes}
</body></html>
"""
    replace_file(file, page.encode())


def _place(place: Place) -> str:
    problem = f" {escape(place.problem)}" if place.problem else ""
    plural = "s" if place.gpus > 1 else ""
    host = f"; {place.host / GIB:.1f} GiB of the host's memory each" if place.host else ""
    what = f"{place.gpus} GPU{plural}: {place.verdict}{problem}{host}"
    caption = f"{escape(place.name)} <small>{what}</small>"
    return f"<figure><figcaption>{caption}</figcaption>{memory(place)}</figure>"
