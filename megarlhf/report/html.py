"""One self-contained HTML page about a run: key figures, charts, sampled rollouts, configuration.

Nothing in it is loaded from elsewhere and nothing is scripted, so it can be mailed, archived and
opened without a network.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from megarlhf.report.charts import MAX_POINTS, Series, line_chart, stacked_chart
from megarlhf.report.jsonl import replace_file
from megarlhf.report.metrics import MetricsLog, RolloutLog
from megarlhf.report.style import STYLE
from megarlhf.report.text import format_number, format_seconds

MAX_ROLLOUTS = 100  # rows of the table, taken evenly over the run
CLIP = 240  # characters of a text that show at once
MAX_TEXT = 4000  # characters of a text that are in the page at all
MAX_PHASES = 7  # parts of the time chart; the rest is summed as "other"
PHASE_PREFIX = "seconds_"


@dataclass(frozen=True)
class Chart:
    """One line chart: its curves are metrics of the same unit.

    Attributes:
        title: What is shown.
        curves: Metric key to the curve's name.
        unit: What the value axis counts, if that is not plain.
        zero: The value axis includes 0.
    """

    title: str
    curves: dict[str, str]
    unit: str = ""
    zero: bool = True


CHARTS = (
    Chart("Reward", {"reward": "training", "eval_reward": "held-out"}, zero=False),
    Chart("Held-out accuracy", {"eval_accuracy": "held-out"}),
    Chart("KL to the reference", {"kl": "KL"}, unit="nats"),
    Chart("Response length", {"response_length": "length"}, unit="tokens"),
    Chart("Loss", {"loss": "training", "eval_loss": "held-out"}, zero=False),
    Chart("Gradient norm", {"grad_norm": "norm"}),
    Chart("Logprob gap", {"logprob_gap": "gap"}, unit="sampler to actor, nats"),
)


def write_report(
    directory: str | Path, *, title: str, config: dict[str, Any], summary: dict[str, Any]
) -> Path:
    """Write ``directory/report.html`` from the logs in ``directory``; returns its path.

    Args:
        directory: Holds metrics.jsonl and rollouts.jsonl; either may be missing.
        title: Heading of the page.
        config: The whole configuration, nested by section.
        summary: Key figures by name: numbers, texts, or one more level of them. Names that begin
            with "seconds" are shown as durations.
    """
    metrics = sorted(MetricsLog.read(directory), key=lambda record: record["step"])
    rollouts = RolloutLog.read(directory)
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{STYLE}</style></head>
<body><h1>{escape(title)}</h1><div class="soft">{_time_span(metrics)}</div>
{_tiles(summary)}
{_charts(metrics)}
{_rollouts(rollouts)}
{_config(config)}
</body></html>
"""
    path = Path(directory) / "report.html"
    replace_file(path, page.encode("utf-8", "replace"))
    return path


def _time_span(metrics: list[dict]) -> str:
    times = [record["time"] for record in metrics if _is_number(record.get("time"))]
    if not times:
        return "no steps yet"
    first, last = (
        datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M")
        for moment in (min(times), max(times))
    )
    return f"up to step {metrics[-1]['step']:,}; {first} to {last} UTC"


def _tiles(summary: dict[str, Any]) -> str:
    tiles = []
    for name, value in summary.items():
        if isinstance(value, dict):
            rows = "".join(
                f"<p><span>{_words(key)}</span><span>{_figure(item, name)}</span></p>"
                for key, item in value.items()
            )
            tiles.append(f"<div><small>{_words(name)}</small>{rows}</div>")
        else:
            text = _figure(value, name)
            size = "" if len(text) < 10 else ' class="long"' if len(text) < 16 else ' class="wide"'
            tiles.append(f"<div{size}><small>{_words(name)}</small><b>{text}</b></div>")
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _figure(value: Any, name: str) -> str:
    """A summary's value, escaped."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not _is_number(value):
        return escape(str(value))
    if name.startswith("seconds") and math.isfinite(value):
        return format_seconds(value)
    return format_number(value)


def _charts(metrics: list[dict]) -> str:
    keys = list(dict.fromkeys(key for record in metrics for key in record))
    phases = [key for key in keys if key.startswith(PHASE_PREFIX)]
    known = {"step", "time", *phases, *(key for chart in CHARTS for key in chart.curves)}
    others = [Chart(key, {key: key}, zero=False) for key in keys if key not in known]
    main = "".join(_chart(chart, metrics) for chart in CHARTS) + _phase_chart(phases, metrics)
    more = "".join(_chart(chart, metrics) for chart in others)
    long = any(len(_points(key, metrics)) > MAX_POINTS for key in keys)
    hint = "line: mean of nearby steps, band: their lowest to highest" if long else ""
    page = ""
    if main:
        page = f'<h2>Metrics <small>{hint}</small></h2><div class="charts">{main}</div>'
    if more:
        page += (
            '<details class="block"><summary>More metrics</summary>'
            f'<div class="charts">{more}</div></details>'
        )
    return page


def _chart(chart: Chart, metrics: list[dict]) -> str:
    series = [
        Series(name, points)
        for key, name in chart.curves.items()
        if (points := _points(key, metrics))
    ]
    svg = line_chart(series, zero=chart.zero)
    missing = sum(value is None for one in series for _, value in one.points)
    if not svg and not missing:
        return ""
    value = series[0].points[-1][1]
    last = "not finite" if value is None else format_number(value)
    notes = [chart.unit, f"{missing} not finite" if missing else ""]
    return _framed(chart.title, ", ".join(filter(None, notes)), last, series, svg)


def _phase_chart(phases: list[str], metrics: list[dict]) -> str:
    """Seconds of each phase by step; the smallest phases become one when there are many."""
    points = {key: _points(key, metrics) for key in phases}
    totals = {key: sum(value or 0.0 for _, value in points[key]) for key in phases}
    small = sorted(phases, key=totals.__getitem__, reverse=True)[MAX_PHASES:]
    series = [Series(k.removeprefix(PHASE_PREFIX), points[k]) for k in phases if k not in small]
    if small:
        rest: dict[int, float] = {}
        for step, value in (point for key in small for point in points[key]):
            rest[step] = rest.get(step, 0.0) + (value or 0.0)
        series.append(Series("other", list(rest.items())))
    svg = stacked_chart(series, unit="s")
    return _framed("Time by phase", "seconds a step", "", series, svg) if svg else ""


def _framed(title: str, note: str, last: str, series: Sequence[Series], svg: str) -> str:
    value = f'<span class="last">{last}</span>' if last else ""
    legend = "".join(
        f'<span><i class="c{index}"></i>{escape(one.label)}</span>'
        for index, one in enumerate(series)
    )
    legend = f'<div class="legend">{legend}</div>' if len(series) > 1 else ""
    caption = f"{value}{escape(title)} <small>{escape(note)}</small>"
    return f"<figure><figcaption>{caption}</figcaption>{legend}{svg}</figure>\n"


def _points(key: str, metrics: list[dict]) -> list[tuple[int, float | None]]:
    """The steps that have this metric; what is no number (null was not finite) is None."""
    return [
        (record["step"], record[key] if _is_number(record[key]) else None)
        for record in metrics
        if key in record
    ]


def _rollouts(rollouts: list[dict]) -> str:
    if not rollouts:
        return ""
    shown = list(rollouts)
    if len(rollouts) > MAX_ROLLOUTS:
        stride = (len(rollouts) - 1) / (MAX_ROLLOUTS - 1)
        shown = [rollouts[round(index * stride)] for index in range(MAX_ROLLOUTS)]
    rewards = [rollout["reward"] for rollout in rollouts if _is_number(rollout.get("reward"))]
    span = (min(rewards), max(rewards)) if rewards else (0.0, 0.0)
    rows = "\n".join(_rollout_row(rollout, span) for rollout in reversed(shown))
    heads = "".join(f"<th>{n}</th>" for n in ("step", "prompt", "response", "label", "reward"))
    return (
        f"<h2>Rollouts <small>{len(shown):,} of {len(rollouts):,} sampled, newest first</small>"
        f"</h2><table><thead><tr>{heads}</tr></thead><tbody>\n{rows}\n</tbody></table>"
    )


def _rollout_row(rollout: dict[str, Any], span: tuple[float, float]) -> str:
    reward = rollout.get("reward")
    shade, figure = "", "-"
    if _is_number(reward):
        figure = format_number(reward)
        low, high = span
        shade = f" r{min(4, int((reward - low) / (high - low) * 5))}" if high > low else ""
    cut = "" if rollout.get("finish_reason") != "length" else " <small>[cut at the limit]</small>"
    label = rollout.get("label")
    label = label if isinstance(label, str) else json.dumps(label, ensure_ascii=False)
    return (
        f'<tr><td class="number" data-name="step">{rollout["step"]}</td>'
        f'<td class="text" data-name="prompt">{_clipped(rollout.get("prompt"))}</td>'
        f'<td class="text" data-name="response">{_clipped(rollout.get("response"))}{cut}</td>'
        f'<td data-name="label">{_clipped("" if label == "null" else label)}</td>'
        f'<td class="number{shade}" data-name="reward">{figure}</td></tr>'
    )


def _clipped(text: Any) -> str:
    """The text, escaped; what is beyond ``CLIP`` characters folds away."""
    text = "" if text is None else str(text).strip()
    if len(text) <= CLIP:
        return escape(text)
    cut = text.rfind(" ", CLIP // 2, CLIP) + 1 or CLIP
    rest = text[cut:MAX_TEXT]
    if len(text) > MAX_TEXT:
        rest += f" … ({len(text) - MAX_TEXT:,} more characters)"
    return f"<details><summary>{escape(text[:cut])}</summary>{escape(rest)}</details>"


def _config(config: dict[str, Any]) -> str:
    lines = "\n".join(f"{key}={value}" for key, value in _flat(config))
    if not lines:
        return ""
    return (
        '<details class="block"><summary>Configuration</summary>'
        f"<pre>{escape(lines)}</pre></details>"
    )


def _flat(section: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted keys and values, as they would be given on the command line."""
    rows = []
    for key, value in section.items():
        if isinstance(value, dict) and value:
            rows += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            rows.append((f"{prefix}{key}", value))
        else:
            rows.append((f"{prefix}{key}", json.dumps(value, default=str, ensure_ascii=False)))
    return rows


def _words(name: str) -> str:
    return escape(str(name).replace("_", " "))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
