"""One self-contained HTML page about a run: key figures, charts, sampled rollouts, configuration.

Nothing in it is loaded from elsewhere and nothing is scripted, so it can be mailed, archived and
opened without a network.
"""

import json
import math
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from megarlhf.report.jsonl import replace_file
from megarlhf.report.metrics import MetricsLog, RolloutLog
from megarlhf.report.rollout_table import rollout_table
from megarlhf.report.run_charts import charts_of
from megarlhf.report.style import STYLE
from megarlhf.report.text import format_number, format_seconds, is_number


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
{charts_of(metrics)}
{rollout_table(rollouts)}
{_config(config)}
</body></html>
"""
    path = Path(directory) / "report.html"
    replace_file(path, page.encode("utf-8", "replace"))
    return path


def _time_span(metrics: list[dict]) -> str:
    times = [record["time"] for record in metrics if is_number(record.get("time"))]
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
    if not is_number(value):
        return escape(str(value))
    if name.startswith("seconds") and math.isfinite(value):
        return format_seconds(value)
    return format_number(value)


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
