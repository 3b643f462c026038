"""The charts of a run's page: one for each group of metrics, and the time of every phase."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from megarlhf.report.charts import MAX_POINTS, Series, line_chart, stacked_chart
from megarlhf.report.text import format_number, is_number

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


def charts_of(metrics: list[dict]) -> str:
    """The section of all charts, of what was logged step by step."""
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
        (record["step"], record[key] if is_number(record[key]) else None)
        for record in metrics
        if key in record
    ]
