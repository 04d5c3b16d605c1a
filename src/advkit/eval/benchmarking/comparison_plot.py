"""Figure of a comparison of minimum-norm attacks: distance ratio and optimality as bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from advkit.eval.plotting import new_figure, tick_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches of a panel: its width, the height of an attack, and that of the axis with its title.
WIDTH, ATTACK_HEIGHT, AXIS_HEIGHT = 7.2, 0.5, 0.9
NAME_WIDTH = 34  # characters in a line of a name: longer lines leave too little space for the bars
X_LIMIT = 1.2  # of the axis, so that the value of a bar of length 1 fits
BAR_HEIGHT = 0.38  # of the distance between two attacks, which have two bars each


class Bars(NamedTuple):
    """Name of an attack and its two figures in [0, 1], NaN where a figure is undefined."""

    name: str
    distance_ratio: float
    optimality: float


def comparison_plot(panels: Mapping[str, Sequence[Bars]]) -> Figure:
    """Draw a panel for each norm, one below the other, with two bars for each attack.

    Args:
        panels: attacks of each norm, from top to bottom.
    """
    heights = [AXIS_HEIGHT + ATTACK_HEIGHT * len(rows) for rows in panels.values()]
    figure = new_figure(WIDTH, sum(heights))
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    for i, (norm, rows) in enumerate(panels.items()):
        _draw_panel(figure.add_subplot(grid[i]), norm, rows)
    figure.axes[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small")
    return figure


def _draw_panel(axes: Axes, norm: str, rows: Sequence[Bars]) -> None:
    above = [i - BAR_HEIGHT / 2 for i in range(len(rows))]
    below = [i + BAR_HEIGHT / 2 for i in range(len(rows))]
    _draw_bars(axes, above, [row.distance_ratio for row in rows], "C0", "distance ratio")
    _draw_bars(axes, below, [row.optimality for row in rows], "C1", "optimality")
    axes.set_yticks(range(len(rows)), [tick_label(row.name, NAME_WIDTH) for row in rows])
    axes.set(xlim=(0, X_LIMIT), ylim=(len(rows) - 0.5, -0.5), title=f"Nearest in {norm}")
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.set_axisbelow(True)
    axes.grid(axis="x", alpha=0.3)


def _draw_bars(
    axes: Axes, positions: Sequence[float], values: Sequence[float], color: str, label: str
) -> None:
    """Draw horizontal bars with their values at the end, `-` for NaN."""
    shown = [0.0 if math.isnan(value) else value for value in values]
    bars = axes.barh(positions, shown, BAR_HEIGHT, color=color, label=label)
    texts = ["-" if math.isnan(value) else f"{value:.3f}" for value in values]
    axes.bar_label(bars, texts, padding=3, fontsize="small")
