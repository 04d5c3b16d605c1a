"""Figures of a report, with matplotlib but without its global state."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from advkit.core.norms import COUNTS
from advkit.eval.accuracy import Rate
from advkit.eval.noise import NoiseOutcome
from advkit.eval.plotting import new_panels
from advkit.eval.robustness.accuracy_curve import AccuracyCurve, shown_limit
from advkit.eval.robustness.outcome import AttackOutcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Panels in a row: as many as are legible on a page.
MAX_PANELS_ACROSS = 3
# Characters in a line of a legend: longer lines hide the curves.
LEGEND_LINE_WIDTH = 34
# Colors of attacks, without the gray of the worst case and of noise: one for each attack of
# `advkit evaluate`.
COLORS = (
    "tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink",
    "tab:olive", "tab:cyan", "navy", "gold", "darkgreen", "salmon", "indigo",
)  # fmt: skip
MARKERS = "osD^v*P"
WORST_CASE = "worst case"  # name of the curve of all attacks at once
CLEAN_STYLE: dict[str, Any] = {
    "color": "black", "linestyle": "", "marker": "_", "markersize": 14, "label": "no attack"
}  # fmt: skip
WORST_CASE_STYLE: dict[str, Any] = {"color": "black", "linewidth": 3, "alpha": 0.3}
NOISE_STYLE: dict[str, Any] = {"color": "gray", "linestyle": "--", "linewidth": 1, "marker": "."}
# Share of the adversarial examples of a minimum-norm attack that lie within the x axis: the few
# farthest ones would compress the rest of the curve.
SHOWN_QUANTILE = 0.99


def accuracy_curves(
    outcomes: Sequence[AttackOutcome], clean: Tensor, noise: Sequence[NoiseOutcome]
) -> Figure | None:
    """Draw accuracy against eps: one panel for each norm, one color for each attack.

    Lines join measured points only. The worst case is drawn at every eps: the share of the inputs
    that are labeled correctly and have no adversarial example of any attack within that eps. Robust
    accuracy cannot be higher.

    Args:
        outcomes: outcome of each attack.
        clean: bool `(n,)`; labeled correctly before any attack.
        noise: outcomes of random noise, as baselines.

    Returns:
        The figure; `None` if each attack has one budget for each sample, which no axis can show.
    """
    drawn = [o for o in outcomes if o.minimum_norm or o.eps is not None]
    norms = sorted({outcome.norm for outcome in drawn})
    if not norms:
        return None
    figure, panels = new_panels(len(norms), MAX_PANELS_ACROSS, 5.2, 3.6)
    styles = _styles(sorted({outcome.family for outcome in drawn}))
    for axes, norm in zip(panels, norms, strict=True):
        inside = [o for o in drawn if o.norm == norm]
        limit = largest_shown_eps(inside)
        _draw_worst_case(axes, [o for o in outcomes if o.norm == norm], clean, limit)
        _draw_budgets(axes, inside, styles)
        _draw_minimum_norm(axes, inside, clean, limit, styles)
        _draw_noise(axes, [n for n in noise if n.norm == norm])
        axes.plot(0.0, 100 * float(Rate.of(clean)), **CLEAN_STYLE)
        _label(axes, norm, limit)
    return figure


def security_curves(
    curves: Sequence[AccuracyCurve], worst_cases: Mapping[str, AccuracyCurve]
) -> Figure:
    """Draw robust accuracy against eps: one panel for each norm, one curve for each attack.

    Args:
        curves: curve of each attack.
        worst_cases: curve of all attacks at once, by norm.
    """
    figure, panels = new_panels(len(worst_cases), MAX_PANELS_ACROSS, 5.2, 3.6)
    styles = _styles(sorted({curve.attack for curve in curves}))
    for axes, (norm, worst_case) in zip(panels, worst_cases.items(), strict=True):
        inside = [curve for curve in curves if curve.norm == norm]
        limit = shown_limit([curve.distances for curve in inside], SHOWN_QUANTILE) or 1.0
        _draw_steps(axes, worst_case, limit, **WORST_CASE_STYLE)
        for curve in inside:
            _draw_steps(axes, curve, limit, color=styles[curve.attack]["color"])
        axes.plot(0.0, 100 * worst_case.correct / worst_case.total, **CLEAN_STYLE)
        _label(axes, norm, limit)
    return figure


def _styles(families: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return color and marker of each attack, the same in all panels."""
    return {
        family: {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, family in enumerate(families)
    }


def _draw_worst_case(
    axes: Axes, outcomes: list[AttackOutcome], clean: Tensor, limit: float
) -> None:
    """Draw the share of correct inputs without an adversarial example of any attack within eps."""
    _draw_steps(axes, AccuracyCurve.of(WORST_CASE, outcomes, clean), limit, **WORST_CASE_STYLE)


def _draw_steps(axes: Axes, curve: AccuracyCurve, limit: float, **style: Any) -> None:
    """Draw a curve to the right edge of a panel that ends at `limit`."""
    eps, accuracy = curve.eps.tolist(), (100 * curve.robust / curve.total).tolist()
    end = max(eps[-1], 1.03 * limit)
    axes.step(
        [*eps, end], [*accuracy, accuracy[-1]], where="post", label=_wrapped(curve.attack), **style
    )


def _draw_budgets(
    axes: Axes, outcomes: list[AttackOutcome], styles: dict[str, dict[str, Any]]
) -> None:
    """Draw the measured points of budget attacks, with lines between those of one attack."""
    families: dict[str, list[tuple[float, float]]] = {}
    for outcome in outcomes:
        if outcome.eps is not None:
            points = families.setdefault(outcome.family, [])
            points.append((outcome.eps, 100 * float(outcome.robust_accuracy)))
    for family, points in sorted(families.items()):
        axes.plot(*zip(*sorted(points), strict=True), label=_wrapped(family), **styles[family])


def _draw_minimum_norm(
    axes: Axes,
    outcomes: list[AttackOutcome],
    clean: Tensor,
    limit: float,
    styles: dict[str, dict[str, Any]],
) -> None:
    """Draw the curves of minimum-norm attacks, which are measured at every eps."""
    for outcome in outcomes:
        if outcome.minimum_norm:
            curve = AccuracyCurve.of(outcome.family, [outcome], clean)
            _draw_steps(axes, curve, limit, color=styles[outcome.family]["color"])


def _draw_noise(axes: Axes, noise: list[NoiseOutcome]) -> None:
    """Draw the baselines of one norm, if there are any."""
    points = sorted((n.eps, 100 * float(n.robust_accuracy)) for n in noise)
    if points:
        axes.plot(*zip(*points, strict=True), label="random noise", **NOISE_STYLE)


def _label(axes: Axes, norm: str, limit: float) -> None:
    units = {"l0": "l0, features changed", "l0_pixel": "l0, pixels changed"}
    axes.set(xlabel=f"eps ({units.get(norm, f'{norm}, input units')})", ylabel="accuracy in %")
    axes.locator_params(axis="x", integer=norm in COUNTS)
    axes.set(xlim=(-0.03 * limit, 1.03 * limit), ylim=(-3, 103))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _wrapped(label: str) -> str:
    """Break a long name into several lines, because a wide legend hides the curves."""
    return "\n  ".join(
        textwrap.wrap(label, LEGEND_LINE_WIDTH, break_on_hyphens=False, break_long_words=False)
    )


def largest_shown_eps(outcomes: Sequence[AttackOutcome]) -> float:
    """Return the largest eps to draw: of the budgets, and of 99 % of the adversarial examples."""
    limits = [float(outcome.eps) for outcome in outcomes if outcome.eps is not None]
    found = [outcome.distance[outcome.success] for outcome in outcomes if outcome.minimum_norm]
    return max([*limits, shown_limit(found, SHOWN_QUANTILE)]) or 1.0
