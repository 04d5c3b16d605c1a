"""Figures of a report, with matplotlib but without its global state."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from advkit.core.norms import lp_norm
from advkit.eval.accuracy import Rate
from advkit.eval.noise import NoiseOutcome
from advkit.eval.plotting import new_figure, new_panels
from advkit.eval.robustness.outcome import AttackOutcome, Examples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Panels in a row: as many as are legible in a page of the HTML report.
MAX_PANELS_ACROSS = 3
# Characters in a line of a legend: longer lines hide the curves.
LEGEND_LINE_WIDTH = 34
NOISE_STYLE: dict[str, Any] = {"color": "gray", "linestyle": "--", "linewidth": 1, "marker": "."}
# Share of the adversarial examples of a minimum-norm attack that lie within the x axis: the few
# farthest ones would compress the rest of the curve.
SHOWN_QUANTILE = 0.99


def accuracy_curves(
    outcomes: Sequence[AttackOutcome], clean: Tensor, noise: Sequence[NoiseOutcome]
) -> Figure | None:
    """Draw accuracy against eps: one panel for each norm, one curve for each attack.

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
    accuracy = 100 * float(Rate.of(clean))
    for axes, norm in zip(panels, norms, strict=True):
        _draw_budgets(axes, [o for o in drawn if o.norm == norm], accuracy)
        limit = _draw_minimum_norm(axes, [o for o in drawn if o.norm == norm], clean)
        _draw_noise(axes, [n for n in noise if n.norm == norm], accuracy)
        _label(axes, norm, limit)
    return figure


def _draw_budgets(axes: Axes, outcomes: list[AttackOutcome], accuracy: float) -> None:
    """Draw points of budget attacks, and the clean `accuracy` in percent at eps 0."""
    families: dict[str, list[tuple[float, float]]] = {}
    for outcome in outcomes:
        if outcome.eps is not None:
            points = families.setdefault(outcome.family, [(0.0, accuracy)])
            points.append((outcome.eps, 100 * float(outcome.robust_accuracy)))
    for (family, points), marker in zip(sorted(families.items()), "osD^v*XP" * 9, strict=False):
        line = "-" if len(points) > 2 else ":"  # one budget makes no curve
        axes.plot(*zip(*sorted(points), strict=True), line, marker=marker, label=_wrapped(family))


def _draw_minimum_norm(axes: Axes, outcomes: list[AttackOutcome], clean: Tensor) -> float:
    """Draw curves of minimum-norm attacks, and return the largest eps of the panel."""
    limit = _limit(outcomes)
    for outcome in outcomes:
        if outcome.minimum_norm:
            eps, accuracy = _steps(outcome, clean, limit)
            axes.step(eps, accuracy, where="post", label=_wrapped(outcome.family))
    return limit


def _draw_noise(axes: Axes, noise: list[NoiseOutcome], accuracy: float) -> None:
    """Draw the baselines of one norm, if there are any."""
    baseline = [(n.eps, 100 * float(n.robust_accuracy)) for n in noise]
    if baseline:
        points = sorted([(0.0, accuracy), *baseline])
        axes.plot(*zip(*points, strict=True), label="random noise", **NOISE_STYLE)


def _label(axes: Axes, norm: str, limit: float) -> None:
    units = "features changed" if norm == "l0" else "input units"
    axes.set(xlabel=f"eps ({norm}, {units})", ylabel="accuracy in %")
    axes.set(xlim=(-0.03 * limit, 1.03 * limit), ylim=(-3, 103))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _wrapped(label: str) -> str:
    """Break a long name into several lines, because a wide legend hides the curves."""
    return "\n  ".join(
        textwrap.wrap(label, LEGEND_LINE_WIDTH, break_on_hyphens=False, break_long_words=False)
    )


def _limit(outcomes: list[AttackOutcome]) -> float:
    """Return the largest eps to draw: of the budgets, and of 99 % of the adversarial examples."""
    limits = [float(outcome.eps) for outcome in outcomes if outcome.eps is not None]
    for outcome in outcomes:
        if outcome.minimum_norm and outcome.success.any():
            limits.append(
                float(outcome.distance[outcome.success].double().quantile(SHOWN_QUANTILE))
            )
    return max(limits, default=0.0) or 1.0


def _steps(outcome: AttackOutcome, clean: Tensor, limit: float) -> tuple[list[float], list[float]]:
    """Return the eps at which accuracy under a minimum-norm attack falls, and percentages there.

    An input counts as correct at `eps` if its nearest adversarial example is farther away.
    """
    eps = outcome.distance[outcome.success].sort().values.tolist()
    total, correct = len(clean), int(clean.sum())
    accuracy = [100 * (correct - fooled) / total for fooled in range(len(eps) + 1)]
    steps = [0.0, *eps]
    return [*steps, max(steps[-1], 1.03 * limit)], [*accuracy, accuracy[-1]]


def showcase(outcomes: Sequence[AttackOutcome]) -> tuple[AttackOutcome, Examples] | None:
    """Select the attack to show: most examples, and among those the smallest mean change in l2."""
    candidates = [(o, o.examples) for o in outcomes if o.examples and _are_images(o.examples.x)]
    return min(candidates, key=lambda s: (-len(s[1].y), _change(s[1])), default=None)


def _change(examples: Examples) -> float:
    """Return the mean l2 distance of the examples from their inputs."""
    return float(lp_norm(examples.x_adv.double() - examples.x.double(), "l2").mean())


def _are_images(x: Tensor) -> bool:
    return x.ndim == 4 and x.shape[1] in (1, 3)


def example_grid(examples: Examples, bounds: tuple[float, float]) -> Figure:
    """Draw clean inputs, adversarial examples and magnified perturbations, one column for each."""
    k = len(examples.y)
    figure = new_figure(1.6 * k + 0.4, 5.4)
    panels = figure.subplots(3, k, squeeze=False)
    lower, upper = bounds
    for j in range(k):
        x, x_adv = ((v[j] - lower) / (upper - lower) for v in (examples.x, examples.x_adv))
        delta = x_adv - x
        factor = 0.5 / float(delta.abs().max().clamp_min(1e-12))
        y, predicted = int(examples.y[j]), int(examples.predicted[j])
        _show(panels[0, j], x, f"true {y}\npredicted {y}")
        _show(panels[1, j], x_adv, f"true {y}\npredicted {predicted}")
        _show(panels[2, j], 0.5 + factor * delta, f"change x {factor:.3g}")
    for axes, name in zip(panels[:, 0], ("clean", "adversarial", "perturbation"), strict=True):
        axes.set_ylabel(name)
    return figure


def _show(axes: Axes, image: Tensor, title: str) -> None:
    axes.imshow(image.permute(1, 2, 0).float().clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
