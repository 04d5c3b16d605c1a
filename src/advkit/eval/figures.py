"""The pictures of a report, drawn by matplotlib without its global state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from advkit.eval.report import AttackOutcome, Examples, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'advkit[report]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def accuracy_curves(report: Report) -> Figure | None:
    """Accuracy against eps: one panel for each norm, one curve for each attack."""
    norms = sorted({o.norm for o in report.outcomes if o.eps is not None})
    if not norms:
        return None
    figure = _figure(5.2 * len(norms), 3.6)
    for axes, norm in zip(figure.subplots(1, len(norms), squeeze=False)[0], norms, strict=True):
        _curves(axes, report, norm)
    return figure


def _curves(axes: Axes, report: Report, norm: str) -> None:
    families: dict[str, list[tuple[float, float]]] = {}
    clean = 100 * float(report.clean_accuracy)
    for outcome in report.outcomes:
        if outcome.eps is not None and outcome.norm == norm:
            points = families.setdefault(outcome.family, [(0.0, clean)])
            points.append((outcome.eps, 100 * float(outcome.robust_accuracy)))
    for (family, points), marker in zip(sorted(families.items()), "osD^v*XP" * 9, strict=False):
        line = "-" if len(points) > 2 else ":"  # one budget makes no curve
        axes.plot(*zip(*sorted(points), strict=True), line, marker=marker, label=family)
    axes.set(xlabel=f"eps ({norm}, input units)", ylabel="accuracy in %", ylim=(-3, 103))
    axes.grid(alpha=0.3)
    axes.legend()


def showcase(report: Report) -> tuple[AttackOutcome, Examples] | None:
    """The attack to show: of those with most examples the one of the smallest budget."""
    shown = [(o, o.examples) for o in report.outcomes if o.examples and _are_images(o.examples.x)]
    return min(shown, key=lambda s: (-len(s[1].y), s[0].norm, s[0].eps or 0), default=None)


def _are_images(x: Tensor) -> bool:
    return x.ndim == 4 and x.shape[1] in (1, 3)


def example_grid(examples: Examples, bounds: tuple[float, float]) -> Figure:
    """Clean input, adversarial input and magnified perturbation, a column for each example."""
    k = len(examples.y)
    figure = _figure(1.6 * k + 0.4, 5.4)
    panels = figure.subplots(3, k, squeeze=False)
    lower, upper = bounds
    for j in range(k):
        x, x_adv = ((v[j] - lower) / (upper - lower) for v in (examples.x, examples.x_adv))
        delta = x_adv - x
        factor = 0.5 / float(delta.abs().max().clamp_min(1e-12))
        y, answer = int(examples.y[j]), int(examples.answer[j])
        _show(panels[0, j], x, f"true {y}\nmodel says {y}")
        _show(panels[1, j], x_adv, f"true {y}\nmodel says {answer}")
        _show(panels[2, j], 0.5 + factor * delta, f"change x {factor:.3g}")
    for axes, name in zip(panels[:, 0], ("clean", "adversarial", "perturbation"), strict=True):
        axes.set_ylabel(name)
    return figure


def _show(axes: Axes, image: Tensor, title: str) -> None:
    axes.imshow(image.permute(1, 2, 0).float().clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
