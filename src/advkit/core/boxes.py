"""Perturbation budgets next to the size of the box of valid inputs."""

from __future__ import annotations

import math

from torch import Tensor

from advkit.core import checks
from advkit.core.norms import ORDER


def diameter(norm: str, features: int, bounds: tuple[float, float]) -> float:
    """Return the largest distance between two inputs within `bounds`, inf for an unknown norm.

    A ball of this radius around any input holds every other one.

    Example:
        >>> diameter("l2", 4, (0, 255))
        510.0
    """
    if norm not in ORDER:
        return math.inf
    if norm == "l0":
        return float(features)
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
    limit = diameter(norm, x[0].numel(), bounds)
    if not isinstance(eps, Tensor):
        if eps >= limit:
            checks.warn(whole_box_sentence(norm, f"{norm} {float(eps):g}", bounds))
    elif bool((whole := eps >= limit).any()):
        budget = f"{norm} {float(eps[whole][0]):g} ({checks.samples(whole)})"
        checks.warn(whole_box_sentence(norm, budget, bounds))


def whole_box_sentence(norm: str, budget: str, bounds: tuple[float, float]) -> str:
    """Return the sentence that warns of a ball, with its `budget` as text, that holds the box."""
    lower, upper = bounds
    advice = (
        "In l0, eps is a number of features."
        if norm == "l0"
        else "Give eps in the units of the inputs, such as 8/255 for bounds [0, 1]."
    )
    return (
        f"The ball of {budget} holds every input within the bounds [{lower:g}, {upper:g}], so "
        f"any change is allowed. {advice}"
    )
