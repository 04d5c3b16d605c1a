"""Quality of a minimum-norm attack from its distances and those of the nearest examples known."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def mean_distance_ratio(distance: Tensor, nearest: Tensor) -> float:
    """Return the mean of `nearest` / `distance` over the inputs with a known adversarial example.

    A failure of the attack counts as zero. Equal distances, also two of zero, count as one.

    Args:
        distance: float64 `(n,)`; distances that the attack found, inf for a failure.
        nearest: float64 `(n,)`; distances of the nearest examples of all attacks, inf for none.

    Returns:
        The mean, in [0, 1]; NaN if no attack found an example.
    """
    found = nearest.isfinite()
    own, best = distance[found], nearest[found]
    return float(torch.where(own == best, 1.0, best / own).mean())


def area_optimality(distance: Tensor, nearest: Tensor, attacked: Tensor) -> float:
    """Return the local optimality of AttackBench (Cinà et al., 2024, arXiv:2404.19460).

    It compares areas under curves of robust accuracy, up to the eps at which the envelope of all
    attacks ends: 1 - (area - envelope) / (clean accuracy * eps - envelope). The area under the step
    function of an attack is the mean of its distances, cut off at that eps.

    Args:
        distance: float64 `(n,)`; distances that the attack found, inf for a failure.
        nearest: float64 `(n,)`; distances of the nearest examples of all attacks, inf for none.
        attacked: bool `(n,)`; labeled correctly before any attack.

    Returns:
        The optimality, in [0, 1]; NaN if no attack found an example, or if all nearest examples are
        at the same distance, where the formula is 0 / 0.
    """
    finite = nearest[nearest.isfinite()]
    if not len(finite):
        return math.nan
    limit = finite.amax()
    above_envelope = (limit - nearest[attacked].clamp_max(limit)).sum()
    above_curve = (limit - distance[attacked].clamp_max(limit)).sum()
    return float(above_curve / above_envelope)  # NaN for 0 / 0
