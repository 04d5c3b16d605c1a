"""Drawing that several reports share, by matplotlib without its global state."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from advkit.core.extras import require
from advkit.eval.accuracy import Rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_NAME = 24  # of a line in a label, in characters
_DARK = 60  # percent above which a cell is too dark for black figures

Row = tuple[str, Mapping[str, Rate]]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches.

    Raises:
        ImportError: matplotlib is missing, naming the extra that brings it.
    """
    module = require("matplotlib.figure", extra="report", needed_by="plotting")
    figure: Figure = module.Figure(figsize=(width, height), layout="constrained")
    return figure


def new_panels(count: int, across: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of `count` panels of that size in inches, at most `across` in a row."""
    down = math.ceil(count / across)
    across = math.ceil(count / down)
    figure = new_figure(width * across, height * down)
    return figure, [figure.add_subplot(down, across, i + 1) for i in range(count)]


def draw_shares(axes: Axes, rows: Sequence[Row], columns: Sequence[str]) -> AxesImage:
    """Draw shares as coloured cells with their figures in percent.

    Args:
        axes: to draw on.
        rows: the name of each, and its rates by column; cells of columns it lacks are blank, and
            those it has are the first.
        columns: their names, from left to right.

    Returns:
        What a colour bar is to explain.
    """
    shown = [[rates.get(column, Rate(0, 0)) for column in columns] for _, rates in rows]
    values = [[100 * float(rate) for rate in row] for row in shown]
    drawn = axes.imshow(values, cmap="YlOrRd", vmin=0, vmax=100, aspect="auto")
    for i, (_, rates) in enumerate(rows):
        for j, value in enumerate(values[i][: len(rates)]):
            words = "-" if value != value else f"{value:.1f}"  # no share of nothing
            colour = "white" if value > _DARK else "black"
            axes.text(j, i, words, ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(columns)), [textwrap.fill(name, _NAME) for name in columns])
    axes.tick_params(axis="x", labelrotation=40)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), [textwrap.fill(name, _NAME) for name, _ in rows])
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    axes.hlines([i - 0.5 for i in range(1, len(rows))], -0.5, len(columns) - 0.5, "white")
    return drawn
