"""What the minimum-norm attacks share: the nearest success, rivals in turn, the last polish."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from advkit.attacks._base import GradientAttack
from advkit.attacks._engine import Best, Nearest, none_near, unjudged
from advkit.attacks._problem import Judged, Problem
from advkit.core.losses import Loss, margin, own_and_others
from advkit.core.norms import Norm, per_sample

# The norm in which a plane's normal is measured, for each norm of the distance to the plane.
DUAL: dict[Norm, Norm] = {"l2": "l2", "linf": "l1"}

# Where a success goes, as a multiple of its perturbation, while the last look does not confirm it:
# these points lie on the boundary, and a batch of another size rounds differently. At last the
# clean input.
_FURTHER = (1 + 2**-10, 1 + 2**-7, 1 + 2**-4, 0)

_PAST = 1.001  # a polished success stays that far past the boundary, against rounding


@dataclass(frozen=True, kw_only=True, repr=False)
class MinimumNormAttack(GradientAttack):
    """A gradient attack that looks for the nearest success; a failure gives the clean input."""

    def _objective(self, *, targeted: bool) -> Loss:
        return margin

    def _search(self, problem: Problem) -> Best:
        nearest = self._approach(problem)
        return Best(nearest.x_adv, nearest.shortfall)

    @abstractmethod
    def _approach(self, problem: Problem) -> Nearest:
        """The nearest successes of a batch that is not empty."""

    def _last_look(self, problem: Problem, best: Best) -> tuple[Best, Tensor]:
        found, delta = best.success, best.x_adv - problem.x
        best, logits = super()._last_look(problem, best)
        for factor in _FURTHER:
            lost = found & ~(problem.goal.shortfall(logits) <= 0)
            if not lost.any():
                break
            moved = unjudged(problem.clip(problem.x + factor * delta))
            best.put(lost, moved.take(lost))
            logits = problem.logits(best.x_adv)
        return best, logits


def first_look(problem: Problem) -> tuple[Nearest, Judged]:
    """The clean inputs, judged: those that are successes already are at distance zero."""
    at = problem.judge(problem.x, differentiate=False, first=True)
    return none_near(problem).improved(problem, at), at


def rivals(at: Judged, problem: Problem, most: int) -> list[Tensor]:
    """The likeliest classes besides the label, at most `most`, each `(n,)`.

    What an untargeted attack goes for one after another. A targeted one has none to choose from.
    """
    if problem.goal.targeted:
        return []
    others = own_and_others(at.logits, problem.goal.labels)[1]
    most = min(most, others.shape[1] - 1)
    return list(others.topk(most, dim=1).indices.unbind(1))


def along_walls(problem: Problem, x_adv: Tensor, grad: Tensor) -> Tensor:
    """`grad` without the features at a bound that a step along it would push out of the box."""
    lower, upper = problem.model.bounds
    held = (x_adv <= lower) & (grad < 0) | (x_adv >= upper) & (grad > 0)
    return torch.where(held, 0, grad)


def polish(problem: Problem, inner: Tensor, gap: Tensor, nearest: Nearest, steps: int) -> Nearest:
    """Move each success towards a point that is none, as far as it stays one.

    Regula falsi on the shortfall along the segment between the two, with the weight of an end that
    stays put halved (Illinois): for a boundary that is nearly flat one step is nearly exact.

    Args:
        problem: `n` samples.
        inner: points that are no success, `(n, *features)`.
        gap: their shortfall `(n,)`; samples where it is not above zero are left as they are.
        nearest: the successes; samples without one are left as they are.
        steps: forward passes for each sample.
    """
    rows = (nearest.success & (gap > 0)).nonzero().flatten()
    if not len(rows) or not steps:
        return nearest
    part, outer, inner = problem.take(rows), nearest.take(rows), inner[rows]
    low, high = torch.zeros_like(outer.distance), torch.ones_like(outer.distance)
    below, above = gap[rows].to(low.dtype), -outer.shortfall.to(low.dtype)
    span, best = outer.x_adv - inner, outer
    for _ in range(steps):
        root = _PAST * below / (below + above).clamp_min(torch.finfo(low.dtype).tiny)
        share = low + (high - low) * root.clamp(0.02, 0.98)
        at = part.judge(part.clip(inner + per_sample(share, span) * span), differentiate=False)
        best = best.improved(part, at)
        value, success = at.shortfall.to(low.dtype), at.success
        low, high = torch.where(success, low, share), torch.where(success, share, high)
        below = torch.where(success, below / 2, value)
        above = torch.where(success, -value, above / 2)
    nearest.put(rows, best)
    return nearest
