"""Robust accuracy against eps as an exact step function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advkit.core import checks
from advkit.eval.accuracy import Rate
from advkit.eval.robustness.outcome import DISTANCE_TOLERANCE, AttackOutcome
from advkit.eval.robustness.worst_case import nearest_distances


@dataclass(frozen=True, kw_only=True, eq=False)
class AccuracyCurve:
    """Robust accuracy against eps, known at every eps from the distances of adversarial examples.

    An input is robust at `eps` if it is labeled correctly and its nearest adversarial example is
    farther away. The curve is constant between two entries of `eps` and falls at each of them.

    Attributes:
        attack: name of the attack.
        norm: norm of `eps`.
        eps: float64 `(k,)`; zero, and then the distances at which the curve falls, each once.
        robust: int64 `(k,)`; number of inputs that are robust from each `eps` up to the next.
        correct: number of inputs that are labeled correctly before any attack.
        total: number of inputs.
    """

    attack: str
    norm: str
    eps: Tensor
    robust: Tensor
    correct: int
    total: int

    @staticmethod
    def of(attack: str, outcomes: Sequence[AttackOutcome], clean: Tensor) -> AccuracyCurve:
        """Return the curve under all attacks of `outcomes` at once.

        Args:
            attack: name of the curve.
            outcomes: outcomes of attacks in one norm, at least one.
            clean: bool `(n,)`; labeled correctly before any attack.
        """
        distance = nearest_distances(outcomes)
        start = torch.zeros(1, dtype=distance.dtype)
        steps = torch.cat([start, distance[distance.isfinite()]]).sort().values
        last_of_equal = torch.cat([steps.diff() > 0, torch.tensor([True])]).nonzero().flatten()
        correct = int(clean.sum())
        return AccuracyCurve(
            attack=attack,
            norm=outcomes[0].norm,
            eps=steps[last_of_equal],
            robust=correct - last_of_equal,  # the start has index zero
            correct=correct,
            total=len(clean),
        )

    @property
    def robust_accuracy(self) -> Tensor:
        """Float64 `(k,)`; robust accuracy from each `eps` up to the next, in [0, 1]."""
        return self.robust.double() / self.total

    @property
    def distances(self) -> Tensor:
        """Float64 `(s,)`; distances of the adversarial examples in ascending order."""
        before = torch.cat([torch.tensor([self.correct]), self.robust[:-1]])
        return self.eps.repeat_interleave(before - self.robust)

    def at(self, eps: float) -> Rate:
        """Return the robust accuracy at `eps`, inf for any distance.

        Distances are rounded: one that exceeds `eps` by a millionth of it counts as within it, as
        in the worst cases of a report.

        Raises:
            ValueError: `eps` is negative or NaN.
            TypeError: `eps` is not a number.
        """
        checks.number("eps", eps)
        if not eps >= 0:
            raise ValueError(f"`eps` must not be negative or NaN, got {eps}.")
        limit = torch.tensor(float(eps) * (1 + DISTANCE_TOLERANCE), dtype=torch.float64)
        last = int(torch.searchsorted(self.eps, limit, right=True)) - 1
        return Rate(int(self.robust[last]), self.total)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "attack": self.attack,
            "norm": self.norm,
            "eps": self.eps.tolist(),
            "robust": self.robust.tolist(),
            "correct": self.correct,
            "total": self.total,
        }


def shown_limit(distances: Sequence[Tensor], share: float) -> float:
    """Return the eps that holds a `share` of the adversarial examples of each attack.

    Args:
        distances: distances `(s,)` of the examples of each attack.
        share: share of these examples; the few farthest ones would compress the rest of a curve.

    Returns:
        The greatest of these eps; zero without an example.
    """
    return max((float(d.double().quantile(share)) for d in distances if len(d)), default=0.0)


def round_eps(limit: float, *, whole: bool, intervals: int = 7) -> list[float]:
    """Return at most `intervals` + 1 round numbers from zero to `limit` or just above it.

    Args:
        limit: positive number to reach, up to rounding.
        whole: allow whole numbers only.
        intervals: greatest number of steps from zero to the last number.
    """
    limit = limit * (1 - DISTANCE_TOLERANCE)
    width = limit / intervals
    power = 10.0 ** math.floor(math.log10(width))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= width)
    step = max(1.0, step) if whole else step
    count = math.ceil(limit / step)
    return [float(f"{i * step:.6g}") for i in range(count + 1)]
