"""The heat maps of a transfer matrix."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from advkit.eval.figures import new_figure
from advkit.eval.matrix import TransferMatrix
from advkit.eval.rates import Rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_NAME = 24  # of a line in a label, in characters
_CELL = (0.62, 0.46)  # width and height in inches
_LEAST = 2.8  # width of a panel that has a title, in inches
_ROUND = (4.2, 2.6)  # width and height of what stands around the cells, in inches
_ASKED = "target, which is asked about them"
_DARK = 60  # percent above which a cell is too dark for black figures

Row = tuple[str, Mapping[str, Rate]]


def heat_maps(matrix: TransferMatrix) -> Figure:
    """Over all inputs to the left, with the baselines, and given that the source is fooled."""
    baselines, sources = list(matrix.baselines.items()), list(matrix.over_all.items())
    count = len(baselines) + len(sources)
    width = max(_CELL[0] * len(matrix.targets), _LEAST)
    figure = new_figure(2 * width + _ROUND[0], _CELL[1] * count + _ROUND[1])
    left, right = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.08})
    draw_shares(left, [*baselines, *sources], matrix.targets)
    _title(left, f"over all: share of all {matrix.total:,} inputs\nthat the target gets wrong")
    left.set(xlabel=_ASKED, ylabel="source, which made the examples")
    blank: list[Row] = [(name, {}) for name, _ in baselines]
    drawn = draw_shares(right, [*blank, *matrix.given_fooled.items()], matrix.targets)
    right.set_xlabel(_ASKED)
    _title(right, "given fooled: the same share of only\nthose inputs that fool the source")
    right.text(
        (len(matrix.targets) - 1) / 2, (len(baselines) - 1) / 2, "no source to fool",
        ha="center", va="center", color="grey",
    )  # fmt: skip
    _denominators(right, [rate.count for rate in matrix.fooled.values()], len(baselines))
    figure.colorbar(drawn, ax=[left, right], label="%", shrink=0.8, pad=0.02)
    return figure


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
    axes.set_xticks(range(len(columns)), [_wrapped(name) for name in columns])
    axes.tick_params(axis="x", labelrotation=40)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), [_wrapped(name) for name, _ in rows])
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    axes.hlines([i - 0.5 for i in range(1, len(rows))], -0.5, len(columns) - 0.5, "white")
    return drawn


def _title(axes: Axes, words: str) -> None:
    axes.set_title(words, fontsize="medium")


def _denominators(axes: Axes, counts: Sequence[int], blank: int) -> None:
    """To the right of the rows after those `blank`, how many inputs they are a share of."""
    other = axes.secondary_yaxis("right")
    other.set_yticks(range(blank, blank + len(counts)), [f"of {count:,}" for count in counts])
    other.tick_params(length=0)
    other.spines[:].set_visible(False)


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, _NAME))
