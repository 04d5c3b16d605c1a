"""Certificates of randomized smoothing and the statistics behind them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from advkit.core import checks
from advkit.models import REJECTED
from advkit.models.labels import label_indices


def probability_bound(counts: Tensor, n: int, alpha: float) -> Tensor:
    """Return the lower end of the one-sided interval of Clopper and Pearson (1934).

    For any probability of an event, the bound exceeds it in at most a share of `alpha` of the
    experiments.

    Args:
        counts: number of times the event occurred, int64 `(m,)`.
        n: number of trials.
        alpha: 1 minus the confidence.

    Returns:
        float64 `(m,)` on the CPU; 0 where the event never occurred.
    """
    from scipy.stats import beta  # here, since it takes a second to import

    k = counts.cpu().numpy()
    bound = torch.from_numpy(beta.ppf(alpha, k.clip(1), n - k + 1))
    return bound.where(counts.cpu() > 0, 0.0)


def certified_radius(p_lower: Tensor, sigma: float) -> Tensor:
    """Return `sigma * Phi^-1(p_lower)`, `(m,)`, in the units of `sigma`.

    The radius is 0 for a `p_lower` below 1/2.
    """
    quantile: Tensor = torch.special.ndtri(p_lower.clamp_min(0.5))
    return sigma * quantile


def vote_p_value(first: Tensor, second: Tensor) -> Tensor:
    """Return the probability of votes at least as uneven if two classes are equally probable.

    The test is exact and two-sided.

    Args:
        first: votes of one class, int64 `(m,)`, at least as many as those of the other.
        second: votes of the other class, int64 `(m,)`.

    Returns:
        float64 `(m,)`.
    """
    from scipy.stats import binom  # here, since it takes a second to import

    k, n = first.cpu().numpy(), (first + second).cpu().numpy()
    return torch.from_numpy(2 * binom.sf(k - 1, n, 0.5))


def min_draws(alpha: float) -> tuple[int, int]:
    """Return the smallest numbers of draws that decide at `alpha` if all of them agree.

    Returns:
        The number for the test between two classes, and the number for a radius above 0.
    """
    at_least = max(1, math.floor(-math.log2(alpha)))  # one half to this power is about `alpha`
    n0 = next(n for n in count(at_least) if _is_decided(n, alpha))
    n = next(n for n in count(at_least) if _has_radius(n, alpha))
    return n0, n


def _is_decided(n: int, alpha: float) -> bool:
    """Return whether `n` votes for one class and none for another decide between the two."""
    return float(vote_p_value(torch.tensor([n]), torch.tensor([0]))) <= alpha


def _has_radius(n: int, alpha: float) -> bool:
    """Return whether the radius is above 0 if all of `n` draws agree."""
    return float(certified_radius(probability_bound(torch.tensor([n]), n, alpha), 1.0)) > 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Certificates:
    """Certified classes of `m` inputs and the l2 radii within which they hold.

    Printed, they show how many inputs are certified beyond some radii.

    Attributes:
        labels: int64 `(m,)`; `REJECTED` where the draws do not decide.
        radius: `(m,)`, in input units, rounded down. The label holds at all distances below it. 0
            for `REJECTED`.
        counts: int64 `(m,)`, number of the `n` draws that are classified as the tested class.
        p_lower: `(m,)`, lower bound of the probability of that class, rounded down.
        sigma: standard deviation of the noise.
        n: draws for each bound.
        alpha: probability of an error in each label with its radius.
        label_values: labels of the caller for the classes, `None` for their indices.
    """

    labels: Tensor
    radius: Tensor
    counts: Tensor
    p_lower: Tensor
    sigma: float
    n: int
    alpha: float
    label_values: Tensor | None = None

    def __str__(self) -> str:
        abstained = int((self.labels == REJECTED).sum())
        heading = (
            f"{len(self.labels):,} inputs, sigma {self.sigma:g}, {self.n:,} draws, "
            f"alpha {self.alpha:g}; {abstained:,} abstained"
        )
        rows = [
            f"  {radius:>8.3f}  {int(self._is_certified_beyond(radius).sum()):>9,}"
            for radius in self._radii()
        ]
        return "\n".join([heading, "l2 radius  certified", *rows])

    def certified_accuracy(self, y: Tensor, radius: float) -> float:
        """Return the share of inputs whose label `y` `(m,)` is certified within `radius`.

        The radius itself is included.

        Raises:
            ValueError: `y` has the wrong shape or range, or `radius` is negative.
            TypeError: an argument has the wrong type.
        """
        checks.not_negative("radius", radius)
        y = label_indices("y", y, self.labels, self)
        return ((self.labels == y) & self._is_certified_beyond(radius)).cpu().double().mean().item()

    def _radii(self) -> list[float]:
        """Return multiples of half a `sigma` up to the largest radius that `n` draws certify."""
        max_bound = probability_bound(torch.tensor([self.n]), self.n, self.alpha)
        max_radius = float(certified_radius(max_bound, self.sigma))
        step = self.sigma / 2
        return [i * step for i in range(int(max_radius / step) + 1)]

    def _is_certified_beyond(self, radius: float) -> Tensor:
        """Return the mask `(m,)` of inputs with a larger radius, compared without rounding."""
        return (self.radius.cpu().double() > radius).to(self.radius.device)
