"""The table and the curves of the runs that `benchmarks.every_algorithm` made."""

import argparse
import json
import statistics
from html import escape
from pathlib import Path

from benchmarks.every_algorithm import ROWS, directory
from megarlhf.report.axes import HEIGHT, LEFT, WIDTH
from megarlhf.report.charts import Series, line_chart
from megarlhf.report.metrics import MetricsLog
from megarlhf.report.style import STYLE

COLOURS = 8  # of a chart


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.algorithm_table", description=__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="as the runs were told")
    parser.add_argument("--svg", type=Path, help="draw the curves into this directory")
    options = parser.parse_args()
    curves = table(options.out)
    if options.svg is not None:
        draw(curves, options.svg)


def table(out: Path) -> list[Series]:
    """Print a line of Markdown a row, with all seeds that are complete; returns their mean curves."""
    curves = []
    print("| run | seeds | held-out before | after | points, the least |\n|---|---|---:|---:|---:|")
    for name in ROWS:
        summaries = sorted(out.glob(f"seed-*/{directory(Path(), name)}/summary.json"))
        if not summaries:
            continue
        found = [json.loads(file.read_text()) for file in summaries]
        seeds = ", ".join(file.parts[-3].removeprefix("seed-") for file in summaries)
        before, after = (
            [summary[key] for summary in found] for key in ("accuracy_before", "accuracy_after")
        )
        least = min(b - a for a, b in zip(before, after, strict=True))
        shown = [", ".join(f"{value:.1%}" for value in values) for values in (before, after)]
        print(f"| {name} | {seeds} | {shown[0]} | {shown[1]} | {100 * least:.1f} |")
        curves.append(Series(name, mean_curve([file.parent for file in summaries])))
    return curves


def mean_curve(runs: list[Path]) -> list[tuple[int, float]]:
    """Held-out accuracy by step, the mean of several runs."""
    points: dict[int, list[float]] = {}
    for path in runs:
        accuracies = {
            row["step"]: row["eval_accuracy"]
            for row in MetricsLog.read(path)
            if "eval_accuracy" in row
        }
        for step, value in accuracies.items():
            points.setdefault(step, []).append(value)
    return [(step, statistics.fmean(values)) for step, values in sorted(points.items())]


def draw(curves: list[Series], directory: Path) -> None:
    """Pictures of eight curves each, with their style and a legend."""
    for number, begin in enumerate(range(0, len(curves), COLOURS)):
        part = curves[begin : begin + COLOURS]
        chart = line_chart(part, zero=False)
        lines = [
            f'<rect class="bar c{index}" x="{x}" y="{y}" width="10" height="10"/>'
            f'<text x="{x + 15}" y="{y + 9}">{escape(one.label)}</text>'
            for index, one in enumerate(part)
            for x, y in [(LEFT + index % 2 * (WIDTH - LEFT) // 2, HEIGHT + 8 + index // 2 * 16)]
        ]
        height = HEIGHT + 12 + (len(part) + 1) // 2 * 16
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">'
        shapes = chart[chart.index(">") + 1 : chart.rindex("</svg>")]
        text = f"{head}<style>{STYLE}</style>{shapes}{''.join(lines)}</svg>\n"
        (directory / f"every_algorithm_{number + 1}.svg").write_text(text)


if __name__ == "__main__":
    main()
