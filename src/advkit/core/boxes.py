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
    largest = float(eps.max()) if isinstance(eps, Tensor) and len(eps) else eps
    if largest >= diameter(norm, x[0].numel(), bounds):
        checks.warn(whole_box_sentence(f"{norm} {float(largest):g}", bounds))


def whole_box_sentence(budget: str, bounds: tuple[float, float]) -> str:
    """Return the sentence that warns of a ball that holds the whole box."""
    lower, upper = bounds
    return (
        f"The ball of {budget} holds every input within the bounds [{lower:g}, {upper:g}], so any "
        "change is allowed. Give eps in the units of the inputs, such as 8/255 for bounds [0, 1]."
    )
