"""The picture of a benchmark: what attacks find against what they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from advkit.eval.benchmarking.ranking import Group, Row
from advkit.eval.plotting import new_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ACROSS = 2  # panels in a row
_ROOM = 2.0  # beside the cheapest and the dearest attack, as a factor


def found_against_floors(groups: Sequence[Group]) -> Figure | None:
    """A panel for each group in which something is found; `None` without any."""
    drawn = [group for group in groups if _drawn(group, group.rows)]
    if not drawn:
        return None
    figure, panels = new_panels(len(drawn), _ACROSS, 6.4, 4.0)
    for axes, group in zip(panels, drawn, strict=True):
        _panel(axes, group)
    return figure


def _drawn(group: Group, rows: Sequence[Row]) -> list[Row]:
    """Those of `rows` that have a place on the axes, the cheapest first."""
    placed = [row for row in rows if row.found.count and math.isfinite(_height(group, row))]
    return sorted(placed, key=lambda row: row.cost.floors)


def _height(group: Group, row: Row) -> float:
    return 100 * float(row.found) if group.budget else row.median_distance


def _panel(axes: Axes, group: Group) -> None:
    rows, front = _drawn(group, group.rows), _drawn(group, group.front)
    cheapest, dearest = rows[0].cost.floors, rows[-1].cost.floors
    middle = math.sqrt(cheapest * dearest)
    for i, row in enumerate(rows):
        at = row.cost.floors, _height(group, row)
        axes.plot(*at, "o", color="C0" if row in front else "grey")
        # Inwards, and by turns above and below: neighbours keep their names apart.
        aside, way = (5, "left") if at[0] <= middle else (-5, "right")
        shift = (aside, -12 if i % 2 else 5)
        axes.annotate(
            row.name, at, xytext=shift, textcoords="offset points", ha=way, fontsize="small"
        )
    steps = [(row.cost.floors, _height(group, row)) for row in front]
    axes.step(*zip(*steps, strict=True), where="post", color="C0", alpha=0.5)
    axes.set_xscale("log")
    axes.set_xlim(cheapest / _ROOM, dearest * _ROOM)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set(xlabel="floors (bare passes)", title=group.title)
    if group.budget:
        axes.set(ylabel="found in %", ylim=(-8, 108))
    else:
        axes.set(ylabel=f"median distance ({group.norm}), nearer is higher")
        axes.margins(y=0.2)
        axes.invert_yaxis()
    axes.grid(alpha=0.3)
