"""Plot the results of `test_scaling.py`: milliseconds per sample along each axis.

    python -m pytest benchmarks/test_scaling.py --benchmark-json=bench.json
    python -m benchmarks.plot_scaling bench.json docs/scaling.png

Needs the extra `report`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.test_scaling import AXES, BASE

TITLES = {
    "batch": "samples in the batch",
    "pixels": "pixels along a side",
    "classes": "classes",
    "threads": "threads",
}
MARKERS = "osD^v<>P"


def read(path: Path) -> list[dict[str, Any]]:
    """Read the figures of each timed benchmark of scaling."""
    entries = json.loads(path.read_text())["benchmarks"]
    return [e["extra_info"] for e in entries if "ms_per_sample" in e["extra_info"]]


def lines(rows: list[dict[str, Any]], axis: str) -> dict[str, list[tuple[int, float]]]:
    """Return sorted points (value, ms per sample) along an axis, by attack."""
    points_of: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row["axis"] == axis:
            points_of.setdefault(row["attack"], []).append((row["value"], row["ms_per_sample"]))
    return {attack: sorted(points) for attack, points in points_of.items()}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a figure to `path`, with a log-log panel for each axis and a line for each attack."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, NullLocator

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2, sharey=True).flat
    for panel, (axis, values) in zip(panels, AXES.items(), strict=True):
        for marker, (attack, points) in zip(MARKERS, lines(rows, axis).items(), strict=False):
            panel.plot(*zip(*points, strict=True), marker=marker, markersize=5, label=attack)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xticks(values, [str(value) for value in values])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.axvline(getattr(BASE, axis), color="0.8", zorder=0)
        panel.set_xlabel(TITLES[axis])
        panel.grid(axis="y", color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
    for panel in figure.axes[::2]:
        panel.set_ylabel("ms per sample")
    figure.suptitle(
        f"Cost of a few steps on a small net: {BASE.batch} samples of {BASE.pixels} x "
        f"{BASE.pixels}, {BASE.classes} classes, {BASE.threads} thread; one of them varied",
        fontsize=11,
    )
    labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", ncols=8, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Parse the arguments and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path, help="file that --benchmark-json wrote")
    parser.add_argument("image", type=Path, help="image file to write")
    arguments = parser.parse_args()
    draw(read(arguments.json), arguments.image)


if __name__ == "__main__":
    main()
