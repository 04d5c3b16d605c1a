"""Perturbation budgets next to the size of the box of valid inputs."""

from __future__ import annotations

import math
from collections.abc import Container

from torch import Tensor

from advkit.core import checks
from advkit.core.norms import COUNTS, ORDER, by_position

_COUNTED = {"l0": "features", "l0_pixel": "positions across channels"}  # by norm


def format_norm(norm: str) -> str:
    """Format a norm as tables name it, for example "l0 pixels" for `"l0_pixel"`."""
    return "l0 pixels" if norm == "l0_pixel" else norm


def format_radius(norm: str, radius: float) -> str:
    """Format the radius of a ball as tables name it, for example "linf 0.1" or "l0 24 pixels"."""
    return f"l0 {radius:.6g} pixels" if norm == "l0_pixel" else f"{norm} {radius:.6g}"


def count_sentences(norms: Container[str]) -> list[str]:
    """Return a sentence for each of `norms` whose distances are counts."""
    return [
        f"A distance in {format_norm(norm)} is the number of changed {_COUNTED[norm]}."
        for norm in COUNTS
        if norm in norms
    ]


def positions(x: Tensor) -> int:
    """Return the number of positions across channels of each sample of `x` `(n, *features)`."""
    return by_position(x[:1], "l0_pixel").shape[2]


def diameter(norm: str, features: int, bounds: tuple[float, float]) -> float:
    """Return the largest distance between two inputs within `bounds`, inf for an unknown norm.

    A ball of this radius around any input holds every other one. In `"l0_pixel"`, `features` is the
    number of positions.

    Example:
        >>> diameter("l2", 4, (0, 255))
        510.0
    """
    if norm in COUNTS:
        return float(features)
    if norm not in ORDER:
        return math.inf
    width: float = bounds[1] - bounds[0]
    corners: float = features ** (1 / ORDER[norm])  # 1 / inf is 0
    return width * corners


def warn_of_whole_box(
    eps: float | Tensor, norm: str, x: Tensor, bounds: tuple[float, float]
) -> None:
    """Warn if a ball of radius `eps` holds every input, which no sensible budget does.

    Args:
        eps: a number, or radii `(n,)`.
        norm: norm of the ball.
        x: inputs `(n, *features)`.
        bounds: lower and upper bound of the inputs.
    """
    if not len(x):
        return
    size = positions(x) if norm == "l0_pixel" else x[0].numel()
    limit = diameter(norm, size, bounds)
    if not isinstance(eps, Tensor):
        if eps >= limit:
            checks.warn(whole_box_sentence(norm, format_radius(norm, float(eps)), bounds))
    elif bool((whole := eps >= limit).any()):
        budget = f"{format_radius(norm, float(eps[whole][0]))} ({checks.samples(whole)})"
        checks.warn(whole_box_sentence(norm, budget, bounds))


def whole_box_sentence(norm: str, budget: str, bounds: tuple[float, float]) -> str:
    """Return the sentence that warns of a ball, with its `budget` as text, that holds the box."""
    lower, upper = bounds
    advice = (
        f"In l0, eps is a number of {_COUNTED[norm]}."
        if norm in _COUNTED
        else "Give eps in the units of the inputs, such as 8/255 for bounds [0, 1]."
    )
    return (
        f"The ball of {budget} holds every input within the bounds [{lower:g}, {upper:g}], so "
        f"any change is allowed. {advice}"
    )
