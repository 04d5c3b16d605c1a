"""What the minimum-norm attacks share: the nearest success, rivals in turn, the last polish."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from advkit.attacks.engine.base import GradientAttack
from advkit.attacks.engine.goal import Goal
from advkit.attacks.engine.problem import Judged, Problem
from advkit.attacks.engine.records import Best, Nearest, none_near
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

    def _last_look(self, problem: Problem, best: Best) -> Best:
        found, delta = best.success, best.x_adv - problem.x
        best = super()._last_look(problem, best)
        for factor in _FURTHER:
            lost = found & ~best.success
            if not lost.any():
                break
            moved = problem.clip(problem.x + factor * delta)
            x_adv = torch.where(per_sample(lost, moved), moved, best.x_adv)
            best = Best(x_adv, problem.goal.shortfall(problem.logits(x_adv)))
        return best

    def _nothing(self, problem: Problem) -> Nearest:
        return none_near(problem)


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


def polish(
    problem: Problem, inner: Tensor, logits: Tensor, nearest: Nearest, steps: int
) -> Nearest:
    """Move each success towards a point that is none, as far as it stays one.

    On the segment between the two the logits are taken for linear functions, each class by itself:
    where they are, one step finds the boundary, whichever class it belongs to.

    Args:
        problem: `n` samples.
        inner: points `(n, *features)`; samples where they are successes are left as they are.
        logits: of `inner`, `(n, classes)`.
        nearest: the successes; samples without one are left as they are.
        steps: forward passes for each sample, after one for the success.
    """
    rows = (nearest.success & (problem.goal.shortfall(logits) > 0)).nonzero().flatten()
    if not len(rows) or not steps:
        return nearest
    part, best, inner = problem.take(rows), nearest.take(rows), inner[rows]
    span = best.x_adv - inner
    low, high = torch.zeros_like(best.distance), torch.ones_like(best.distance)
    below = part.goal.gaps(logits[rows])
    above = part.goal.gaps(part.judge(best.x_adv, differentiate=False).logits)
    for _ in range(steps):
        share = low + (high - low) * (_PAST * _root(below, above, part.goal)).clamp(0.02, 0.98)
        at = part.judge(part.clip(inner + per_sample(share, span) * span), differentiate=False)
        best, gaps = best.improved(part, at), part.goal.gaps(at.logits)
        low, high = torch.where(at.success, low, share), torch.where(at.success, share, high)
        # the end that stays put counts half (Illinois): bends would keep it for ever
        below = torch.where(at.success[:, None], below / 2, gaps)
        above = torch.where(at.success[:, None], gaps, above / 2)
    nearest.put(rows, best)
    return nearest


def _root(below: Tensor, above: Tensor, goal: Goal) -> Tensor:
    """Where straight lines between two points would first meet the goal, as a share `(n,)`.

    Args:
        below: `Goal.gaps` at the point that is no success, `(n, classes)`.
        above: the same at the success.
        goal: leaving a label takes one class, reaching one takes all.
    """
    ahead = below.clamp_min(0)  # a tie that is no success is at the boundary
    root = ahead / (ahead - above).clamp_min(torch.finfo(above.dtype).tiny)
    if goal.targeted:
        return torch.where(below > 0, root, 0).amax(1)
    return torch.where(above <= 0, root, 1).amin(1)
