"""Plotting code that several reports share, with matplotlib but without its global state."""

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

# Characters in a line of a tick label: longer lines leave too little space for the cells.
TICK_LABEL_WIDTH = 24
# Percent above which the color of a cell is too dark for black text.
WHITE_TEXT_ABOVE = 60

Row = tuple[str, Mapping[str, Rate]]


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure of the given size in inches.

    Raises:
        ImportError: matplotlib is missing; the message names the extra that installs it.
    """
    module = require("matplotlib.figure", extra="report", needed_by="plotting")
    figure: Figure = module.Figure(figsize=(width, height), layout="constrained")
    return figure


def new_panels(count: int, across: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Create a figure of `count` panels of the given size in inches, at most `across` in a row."""
    down = math.ceil(count / across)
    across = math.ceil(count / down)
    figure = new_figure(width * across, height * down)
    return figure, [figure.add_subplot(down, across, i + 1) for i in range(count)]


def draw_shares(axes: Axes, rows: Sequence[Row], columns: Sequence[str]) -> AxesImage:
    """Draw rates as colored cells with their values in percent.

    Args:
        axes: axes to draw on.
        rows: name of each row, and its rates by column. A row has rates for the first columns; the
            cells of the others are blank.
        columns: names of the columns, from left to right.

    Returns:
        The image, for a color bar.
    """
    shown = [[rates.get(column, Rate(0, 0)) for column in columns] for _, rates in rows]
    values = [[100 * float(rate) for rate in row] for row in shown]
    image = axes.imshow(values, cmap="YlOrRd", vmin=0, vmax=100, aspect="auto")
    for i, (_, rates) in enumerate(rows):
        for j, value in enumerate(values[i][: len(rates)]):
            text = "-" if math.isnan(value) else f"{value:.1f}"  # NaN: a rate of no inputs
            color = "white" if value > WHITE_TEXT_ABOVE else "black"
            axes.text(j, i, text, ha="center", va="center", fontsize=9, color=color)
    axes.set_xticks(range(len(columns)), [tick_label(name) for name in columns])
    axes.tick_params(axis="x", labelrotation=40)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), [tick_label(name) for name, _ in rows])
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    axes.hlines([i - 0.5 for i in range(1, len(rows))], -0.5, len(columns) - 0.5, "white")
    return image


def tick_label(name: str, width: int = TICK_LABEL_WIDTH) -> str:
    """Break a long name into lines of at most `width` characters."""
    return textwrap.fill(name, width)
