"""Figure of a benchmark: attack success rate or distance against cost, with the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from advkit.core.boxes import format_norm
from advkit.eval.benchmarking.ranking import Group, Row
from advkit.eval.plotting import new_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Panels in a row: two of 6.4 inches fit a page.
MAX_PANELS_ACROSS = 2
# Factor by which the x axis extends beyond the cheapest and the most expensive attack.
X_MARGIN = 2.0


def pareto_plot(groups: Sequence[Group]) -> Figure | None:
    """Draw a panel for each group in which an attack succeeds; `None` without such a group."""
    drawn = [group for group in groups if _drawable(group, group.rows)]
    if not drawn:
        return None
    figure, panels = new_panels(len(drawn), MAX_PANELS_ACROSS, 6.4, 4.0)
    for axes, group in zip(panels, drawn, strict=True):
        _draw_panel(axes, group)
    return figure


def _drawable(group: Group, rows: Sequence[Row]) -> list[Row]:
    """Return the `rows` with a finite position on the axes, the cheapest first."""
    placed = [row for row in rows if row.success_rate.count and math.isfinite(_height(group, row))]
    return sorted(placed, key=lambda row: row.cost.passes)


def _height(group: Group, row: Row) -> float:
    return 100 * float(row.success_rate) if group.has_budget else row.median_distance


def _draw_panel(axes: Axes, group: Group) -> None:
    rows, pareto_front = _drawable(group, group.rows), _drawable(group, group.pareto_front)
    lowest, highest = rows[0].cost.passes, rows[-1].cost.passes
    middle = math.sqrt(lowest * highest)
    for i, row in enumerate(rows):
        position = row.cost.passes, _height(group, row)
        axes.plot(*position, "o", color="C0" if row in pareto_front else "gray")
        # Labels point to the middle, alternately above and below, to avoid overlaps.
        aside, align = (5, "left") if position[0] <= middle else (-5, "right")
        shift = (aside, -12 if i % 2 else 5)
        axes.annotate(
            row.name, position, xytext=shift, textcoords="offset points", ha=align, fontsize="small"
        )
    steps = [(row.cost.passes, _height(group, row)) for row in pareto_front]
    axes.step(*zip(*steps, strict=True), where="post", color="C0", alpha=0.5)
    axes.set_xscale("log")
    axes.set_xlim(lowest / X_MARGIN, highest * X_MARGIN)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set(xlabel="passes", title=group.title)
    if group.has_budget:
        axes.set(ylabel="attack success rate in %", ylim=(-8, 108))
    else:
        axes.set(ylabel=f"median distance ({format_norm(group.norm)}), axis inverted")
        axes.margins(y=0.2)
        axes.invert_yaxis()
    axes.grid(alpha=0.3)
