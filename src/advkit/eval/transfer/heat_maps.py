"""Heat maps of a transfer matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from advkit.eval.accuracy import Rate
from advkit.eval.plotting import Row, draw_shares, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Width and height of a cell in inches: a percentage with one decimal fits.
CELL_SIZE = (0.62, 0.46)
# Width of a panel in inches that its title needs.
MIN_PANEL_WIDTH = 2.8
# Width and height of labels, titles and color bar around the cells, in inches.
MARGIN_SIZE = (4.2, 2.6)
TARGET_LABEL = "target, which classifies them"


def heat_maps(
    baselines: Sequence[Row],
    error_rate: Sequence[Row],
    transfer_rate: Sequence[Row],
    fooled: Sequence[Rate],
    targets: Sequence[str],
) -> Figure:
    """Draw the error rate to the left and the transfer rate to the right.

    Args:
        baselines: error rate of each target without an attack and under noise, at least one row.
        error_rate: error rate of each target over all inputs, a row for each source.
        transfer_rate: error rate of each target over the inputs that fool the source.
        fooled: share of the inputs that fool each source.
        targets: names of the targets.
    """
    count = len(baselines) + len(error_rate)
    width = max(CELL_SIZE[0] * len(targets), MIN_PANEL_WIDTH)
    figure = new_figure(2 * width + MARGIN_SIZE[0], CELL_SIZE[1] * count + MARGIN_SIZE[1])
    left, right = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.08})
    draw_shares(left, [*baselines, *error_rate], targets)
    total = fooled[0].total
    _title(left, f"error rate: share of all {total:,}\ninputs that the target misclassifies")
    left.set(xlabel=TARGET_LABEL, ylabel="source of the examples")
    blank: list[Row] = [(name, {}) for name, _ in baselines]
    image = draw_shares(right, [*blank, *transfer_rate], targets)
    right.set_xlabel(TARGET_LABEL)
    _title(right, "transfer rate: share of only those\ninputs that fool the source")
    right.text(
        (len(targets) - 1) / 2, (len(baselines) - 1) / 2, "no source to fool",
        ha="center", va="center", color="gray",
    )  # fmt: skip
    _denominators(right, [rate.count for rate in fooled], len(baselines))
    figure.colorbar(image, ax=[left, right], label="%", shrink=0.8, pad=0.02)
    return figure


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize="medium")


def _denominators(axes: Axes, counts: Sequence[int], blank: int) -> None:
    """Label the rows after the first `blank` ones with their denominators, to the right."""
    other = axes.secondary_yaxis("right")
    other.set_yticks(range(blank, blank + len(counts)), [f"of {count:,}" for count in counts])
    other.tick_params(length=0)
    other.spines[:].set_visible(False)
