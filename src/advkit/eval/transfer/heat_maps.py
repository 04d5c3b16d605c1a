"""The heat maps of a transfer matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from advkit.eval.accuracy import Rate
from advkit.eval.plotting import Row, draw_shares, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CELL = (0.62, 0.46)  # width and height in inches
_LEAST = 2.8  # width of a panel that has a title, in inches
_ROUND = (4.2, 2.6)  # width and height of what stands around the cells, in inches
_ASKED = "target, which is asked about them"


def heat_maps(
    baselines: Sequence[Row],
    error_rate: Sequence[Row],
    transfer_rate: Sequence[Row],
    fooled: Sequence[Rate],
    targets: Sequence[str],
) -> Figure:
    """Draw over all inputs to the left, and given that the source is fooled to the right.

    Args:
        baselines: rates of each target without an attack and under noise, at least one row.
        error_rate: rates of each target over all inputs, a row for each source.
        transfer_rate: rates of each target over the inputs that fool the source.
        fooled: the share of the inputs that fool each source.
        targets: their names.
    """
    count = len(baselines) + len(error_rate)
    width = max(_CELL[0] * len(targets), _LEAST)
    figure = new_figure(2 * width + _ROUND[0], _CELL[1] * count + _ROUND[1])
    left, right = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.08})
    draw_shares(left, [*baselines, *error_rate], targets)
    total = fooled[0].total
    _title(left, f"over all: share of all {total:,} inputs\nthat the target gets wrong")
    left.set(xlabel=_ASKED, ylabel="source, which made the examples")
    blank: list[Row] = [(name, {}) for name, _ in baselines]
    drawn = draw_shares(right, [*blank, *transfer_rate], targets)
    right.set_xlabel(_ASKED)
    _title(right, "given fooled: the same share of only\nthose inputs that fool the source")
    right.text(
        (len(targets) - 1) / 2, (len(baselines) - 1) / 2, "no source to fool",
        ha="center", va="center", color="grey",
    )  # fmt: skip
    _denominators(right, [rate.count for rate in fooled], len(baselines))
    figure.colorbar(drawn, ax=[left, right], label="%", shrink=0.8, pad=0.02)
    return figure


def _title(axes: Axes, words: str) -> None:
    axes.set_title(words, fontsize="medium")


def _denominators(axes: Axes, counts: Sequence[int], blank: int) -> None:
    """To the right of the rows after those `blank`, how many inputs they are a share of."""
    other = axes.secondary_yaxis("right")
    other.set_yticks(range(blank, blank + len(counts)), [f"of {count:,}" for count in counts])
    other.tick_params(length=0)
    other.spines[:].set_visible(False)
