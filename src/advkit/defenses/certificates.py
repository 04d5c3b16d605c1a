"""What randomised smoothing proves about inputs, and the statistics of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count

import torch
from scipy.stats import beta, binom
from torch import Tensor

from advkit.core import checks
from advkit.models import REJECTED
from advkit.models.labels import label_indices


def probability_bound(counts: Tensor, n: int, alpha: float) -> Tensor:
    """The lower end of a one-sided interval of Clopper and Pearson (1934).

    Whatever the probability of an event, the bound is above it for at most a share of `alpha` of
    the experiments.

    Args:
        counts: how often the event was seen, int64 `(m,)`.
        n: in how many trials.
        alpha: 1 minus the confidence.

    Returns:
        float64 `(m,)` on the CPU; 0 where the event was never seen.
    """
    k = counts.cpu().numpy()
    bound = torch.from_numpy(beta.ppf(alpha, k.clip(1), n - k + 1))
    return bound.where(counts.cpu() > 0, 0.0)


def certified_radius(p_lower: Tensor, sigma: float) -> Tensor:
    """`sigma * Phi^-1(p_lower)`, `(m,)`, in the units of `sigma`; 0 below a `p_lower` of 1/2."""
    quantile: Tensor = torch.special.ndtri(p_lower.clamp_min(0.5))
    return sigma * quantile


def vote_p_value(first: Tensor, second: Tensor) -> Tensor:
    """Return how probable so uneven votes are if two classes are equally probable, float64 `(m,)`.

    The test is exact and two-sided.

    Args:
        first: votes of the one class, int64 `(m,)`, not fewer than those of the other.
        second: votes of the other, int64 `(m,)`.
    """
    k, n = first.cpu().numpy(), (first + second).cpu().numpy()
    return torch.from_numpy(2 * binom.sf(k - 1, n, 0.5))


def fewest_draws(alpha: float) -> tuple[int, int]:
    """Return the fewest draws that decide at `alpha` if all of them are for one class.

    Returns:
        Those of the test between two classes, and those of a radius above 0.
    """
    at_least = max(1, math.floor(-math.log2(alpha)))  # one half to this power is about `alpha`
    n0 = next(n for n in count(at_least) if _decides(n, alpha))
    n = next(n for n in count(at_least) if _has_radius(n, alpha))
    return n0, n


def _decides(n: int, alpha: float) -> bool:
    """Return whether `n` votes for one class and none for another decide between the two."""
    return float(vote_p_value(torch.tensor([n]), torch.tensor([0]))) <= alpha


def _has_radius(n: int, alpha: float) -> bool:
    """Return whether the radius is above 0 if all of `n` draws are for one class."""
    return float(certified_radius(probability_bound(torch.tensor([n]), n, alpha), 1.0)) > 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Certificates:
    """Classes of `m` inputs and the l2 radii within which the smoothed classifier keeps to them.

    Printed, it says how many inputs are certified beyond some radii.

    Attributes:
        labels: int64 `(m,)`; `REJECTED` where the draws were not enough to be sure of one.
        radius: `(m,)`, in input units, rounded down; within it, itself excluded, the label holds. 0
            where there is none.
        counts: int64 `(m,)`; of the `n` draws, those that answered the class that was tested.
        p_lower: `(m,)`; lower bound of that class's probability, rounded down.
        sigma: standard deviation of the noise.
        n: draws of each bound.
        alpha: probability of an error in each label with its radius.
        label_values: labels by which callers name the classes, `None` for their indices.
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
            f"  {radius:>8.3f}  {int(self._beyond(radius).sum()):>9,}" for radius in self._radii()
        ]
        return "\n".join([heading, "l2 radius  certified", *rows])

    def certified_accuracy(self, y: Tensor, radius: float) -> float:
        """Share of inputs whose label is proved to be `y` `(m,)` within `radius`, that included.

        Raises:
            ValueError: `y` has the wrong shape or range, or `radius` is negative.
            TypeError: an argument is of the wrong type.
        """
        checks.not_negative("radius", radius)
        y = label_indices("y", y, self.labels, self)
        return ((self.labels == y) & self._beyond(radius)).cpu().double().mean().item()

    def _radii(self) -> list[float]:
        """Steps of half a `sigma` below the largest radius that `n` draws can prove."""
        most = probability_bound(torch.tensor([self.n]), self.n, self.alpha)
        reach = float(certified_radius(most, self.sigma))
        step = self.sigma / 2
        return [i * step for i in range(int(reach / step) + 1)]

    def _beyond(self, radius: float) -> Tensor:
        """Which inputs have a larger radius, bool `(m,)`, compared without rounding."""
        return (self.radius.cpu().double() > radius).to(self.radius.device)
