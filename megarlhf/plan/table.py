"""A plan as text for the terminal."""

from collections.abc import Sequence

from megarlhf.plan.hardware import GIB
from megarlhf.plan.places import Place
from megarlhf.plan.result import Plan
from megarlhf.report.text import format_seconds

COLUMNS = 4  # kinds of memory that are named in a line, the largest first


def as_text(plan: Plan) -> str:
    """The verdict, the memory of every place by phase, and the step's time."""
    subject = plan.subject
    machines = f"{subject.nodes} x {subject.gpus_per_node} {subject.gpu.name}"
    memory = f"{subject.memory / GIB:.1f} GiB each"
    lines = [f"{subject.name} on {machines} ({memory}): {plan.verdict}"]
    if plan.missing_gpus:
        lines.append(f"  takes {plan.used_gpus} GPUs, of which {plan.missing_gpus} are not there")
    elif plan.used_gpus < subject.gpus:
        lines.append(f"  takes {plan.used_gpus} of {subject.gpus} GPUs")
    for place in plan.places:
        lines += ["", *_place(place)]
    lines += ["", *_time(plan), "", *(f"note: {note}" for note in plan.notes)]
    return "\n".join(lines)


def _place(place: Place) -> list[str]:
    peak, share = place.peak / GIB, place.peak / place.memory
    plural = "s" if place.gpus > 1 else ""
    lines = [
        f"{place.name} ({place.gpus} GPU{plural}): {peak:.1f} GiB, {share:.0%}, "
        f"in {place.worst}: {place.verdict}"
    ]
    if place.problem:
        lines.append(f"  {place.problem}")
    rows = []
    for phase, kinds in place.phases.items():
        ranked = sorted(kinds.items(), key=lambda item: -item[1])
        named = [f"{kind} {size / GIB:.1f}" for kind, size in ranked[:COLUMNS] if size > 0]
        rest = sum(size for _, size in ranked[COLUMNS:])
        named += [f"rest {rest / GIB:.1f}"] if rest > 0.05 * GIB else []
        rows.append([f"  {phase}", f"{sum(kinds.values()) / GIB:.1f}", ", ".join(named)])
    lines += _aligned(rows)
    if place.host:
        lines.append(f"  of the host's memory: {place.host / GIB:.1f} GiB for each of these GPUs")
    return lines


def _time(plan: Plan) -> list[str]:
    phase, what = plan.bottleneck
    lines = [
        f"a step: {format_seconds(plan.seconds)}, {plan.tokens_a_second:,.0f} tokens/s/GPU, "
        f"MFU of training {plan.mfu:.0%}; most of it: {phase} ({what})"
    ]
    rows = []
    for span in plan.spans:
        ranked = sorted(span.parts.items(), key=lambda item: -item[1])
        parts = ", ".join(f"{name} {s:.1f}" for name, s in ranked if s >= 0.05)
        rows.append([f"  {span.name}", f"{span.seconds:.1f} s", parts])
    return lines + _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"{row[0]:<{first}}  {row[1]:>{second}}  {row[2]}".rstrip() for row in rows]
