"""Base class of minimum-norm attacks, which search for the nearest success."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from advkit.attacks.engine.base import GradientAttack
from advkit.attacks.engine.goal import TIE, Goal
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Best, Nearest
from advkit.attacks.engine.rows import select, update_rows
from advkit.core import checks
from advkit.core.losses import Loss, margin, split_label_logit
from advkit.core.norms import per_sample, steepest
from advkit.core.tensors import at_least_float32

MAX_TIED_CLASSES = 3  # classes that are tried at a tie
MAX_DOUBLINGS = 10  # of the step off a tie: logits of 16 bits tie on a whole strip
BOUNDARY_MARGIN = 1.001  # a refined success is this much beyond the boundary, against rounding
MIN_FRACTION = 0.02  # of the bracket that a refining step keeps at either end


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class MinimumNormAttack(GradientAttack):
    """Gradient attack that searches for the nearest success; a failure returns the clean input.

    It evaluates the clean batch, searches from the samples that are not misclassified, and moves
    each success to the decision boundary. A subclass defines the search.
    """

    _refine_steps: ClassVar[int] = 0  # forward passes that move a success to the boundary

    def _search(self, problem: Problem) -> Best | Nearest:
        return self._nearest_successes(problem)

    def _nearest_successes(self, problem: Problem) -> Nearest:
        """Return the nearest success of each sample, moved to the boundary."""
        nearest = self._empty_record(problem)
        at = problem.evaluate_clean(nearest)
        rows = (~nearest.success).nonzero().flatten()
        if len(rows):
            part, at = problem.select(rows), at.select(rows)
            found = self._search_nearest(part, at)
            tied = (at.violation <= TIE) & ~found.success
            if tied.any():
                update_rows(found, tied.nonzero().flatten(), step_off_ties(part.select(tied)))
            update_rows(nearest, rows, self._refined(part, at.logits, found))
        return nearest

    def _search_nearest(self, problem: Problem, at: Iterate) -> Nearest:
        """Return the nearest successes for samples whose clean inputs are not successes.

        An attack that evaluates the clean inputs itself overrides `_search` instead.

        Args:
            problem: the samples.
            at: their clean inputs, evaluated.
        """
        raise NotImplementedError

    def _refined(self, problem: Problem, logits: Tensor, found: Nearest) -> Nearest:
        """Return the successes `found`, moved to the boundary; `logits` are the clean ones."""
        return refine_to_boundary(problem, problem.x, logits, found, self._refine_steps)

    def _empty_record(self, problem: Problem) -> Nearest:
        return Nearest.empty(problem.x)

    def _ascent_loss(self, *, targeted: bool) -> Loss:
        return margin


class OptionalBudgetAttack(MinimumNormAttack):
    """Minimum-norm attack that takes a budget: it then searches for any success in the ball.

    A sample is finished at its first success in the ball, and a failure returns its nearest
    success, projected onto the ball. A subclass passes `_radii` to its searches.
    """

    eps: float | Tensor | None  # a field of the subclass

    def _search(self, problem: Problem) -> Best | Nearest:
        if self.eps is None:
            return super()._search(problem)
        radii = checks.radii(self.eps, self._unrounded(problem))
        nearest = self._nearest_successes(problem)
        return into_ball(problem, nearest.x_adv, nearest, radii)

    def _refined(self, problem: Problem, logits: Tensor, found: Nearest) -> Nearest:
        """Move successes to the boundary, without `eps`; with it they are projected."""
        return found if self.eps is not None else super()._refined(problem, logits, found)

    def _partial_result(self, problem: Problem, record: Best | Nearest) -> Best | Nearest:
        """Return `record`, with `eps` only the iterates in the ball."""
        if self.eps is None:
            return record
        return only_in_ball(problem, record, checks.radii(self.eps, self._unrounded(problem)))

    def _radii(self, problem: Problem) -> Tensor:
        """Return the distances `(n,)` at which samples are finished, 0 without `eps`."""
        x = self._unrounded(problem)
        if isinstance(self.eps, Tensor):
            return checks.rounded_down(self.eps[problem.rows.cpu()], x)
        return checks.radii(self.eps or 0.0, x)

    def _unrounded(self, problem: Problem) -> Tensor:
        """Return the inputs in the dtype of radii: in l0, 16 bits cannot represent all counts."""
        return at_least_float32(problem.x) if self.norm == "l0" else problem.x


def into_ball(problem: Problem, x_adv: Tensor, nearest: Nearest, eps: Tensor) -> Best:
    """Return the iterates of a budget attack, projected onto balls of radius `eps` `(n,)`.

    Args:
        problem: `n` samples.
        x_adv: iterates `(n, *features)`, the success of each sample that has one; overwritten.
        nearest: the successes; those outside of their ball become failures.
        eps: radius of each ball.
    """
    outside = problem.exact_distance(x_adv) > eps
    return Best(
        problem.project_to_ball(x_adv, eps), nearest.violation.masked_fill(outside, math.inf)
    )


def only_in_ball(problem: Problem, record: Best | Nearest, eps: Tensor) -> Best:
    """Return the iterates of `record`, clean inputs for those outside balls of radius `eps`."""
    outside = problem.exact_distance(record.x_adv) > eps
    x_adv = torch.where(per_sample(outside, problem.x), problem.x, record.x_adv)
    return Best(x_adv, record.violation.masked_fill(outside, math.inf))


def step_off_ties(problem: Problem) -> Nearest:
    """Return successes next to clean inputs that lie on the boundary without being successes.

    An attack whose step is as long as the distance to the boundary does not move there.
    """
    nearest = Nearest.empty(problem.x)
    if problem.norm == "l0":
        return nearest
    at = problem.forward(problem.x, differentiate=False)
    candidate_classes: list[Tensor | None] = [*candidates(at, problem.goal, MAX_TIED_CLASSES)]
    for candidate in candidate_classes or [None]:
        nearest = _step_off_tie(problem.with_candidate(candidate), nearest)
        if nearest.success.all():
            break
    return nearest


def _step_off_tie(problem: Problem, nearest: Nearest) -> Nearest:
    """Return `nearest`, improved by steps along the gradient.

    The first step is the smallest one that the dtype can represent at the bounds. It is doubled
    until it reaches a success.
    """
    at = problem.forward(problem.x, differentiate=True)
    gradient, bounds = problem.ascent_direction(at), problem.model.bounds
    length = torch.finfo(problem.x.dtype).eps * (bounds[1] - bounds[0])
    for _ in range(MAX_DOUBLINGS):
        step_sizes = torch.full_like(nearest.distance, length)
        move = steepest(gradient, step_sizes.to(gradient.dtype), problem.norm, problem.x, bounds)
        at = problem.forward(problem.clip(problem.x + move), differentiate=False)
        nearest = nearest.improved(problem, at)
        if nearest.success.all():
            break
        length *= 2
    return nearest


def candidates(at: Iterate, goal: Goal, max_classes: int) -> list[Tensor]:
    """Return the likeliest classes other than the label, at most `max_classes`, each `(n,)`.

    An untargeted attack aims at one after another. A targeted attack has no choice: the list is
    empty.
    """
    if goal.targeted:
        return []
    others = split_label_logit(at.logits, goal.labels)[1]
    k = min(max_classes, others.shape[1] - 1)
    return list(others.topk(k, dim=1).indices.unbind(1))


def refine_to_boundary(
    problem: Problem, inner: Tensor, logits: Tensor, nearest: Nearest, steps: int
) -> Nearest:
    """Move each success towards a point inside the boundary, as far as it remains a success.

    Each step interpolates the logits of each class linearly on the segment between the two points.
    Where the logits are linear, one step finds the boundary, whichever class it belongs to.

    Args:
        problem: `n` samples.
        inner: points `(n, *features)`; a sample whose point is a success itself is not moved.
        logits: of `inner`, `(n, classes)`.
        nearest: the successes; a sample without one is not moved.
        steps: forward passes for each sample, after one for the success.

    Returns:
        `nearest`, updated in place.
    """
    rows = (nearest.success & (problem.goal.violation(logits) > 0)).nonzero().flatten()
    if not len(rows) or not steps:
        return nearest
    part, best, inner = problem.select(rows), select(nearest, rows), inner[rows]
    span = best.x_adv - inner
    low, high = torch.zeros_like(best.distance), torch.ones_like(best.distance)
    below = part.goal.gaps(logits[rows])
    above = part.goal.gaps(part.forward(best.x_adv, differentiate=False).logits)
    for _ in range(steps):
        root = BOUNDARY_MARGIN * linear_root(below, above, part.goal)
        fraction = low + (high - low) * root.clamp(MIN_FRACTION, 1 - MIN_FRACTION)
        at = part.forward(part.clip(inner + per_sample(fraction, span) * span), differentiate=False)
        best, gaps = best.improved(part, at), part.goal.gaps(at.logits)
        low, high = torch.where(at.success, low, fraction), torch.where(at.success, fraction, high)
        # the end that is not replaced counts half (Illinois algorithm): bends would keep it forever
        below = torch.where(at.success[:, None], below / 2, gaps)
        above = torch.where(at.success[:, None], gaps, above / 2)
    update_rows(nearest, rows, best)
    return nearest


def linear_root(below: Tensor, above: Tensor, goal: Goal) -> Tensor:
    """Return the fraction `(n,)` of the way at which linear gaps between two points meet the goal.

    Args:
        below: `Goal.gaps` at the point that is not a success, `(n, classes)`.
        above: `Goal.gaps` at the success, `(n, classes)`.
        goal: to leave the label, the gap of one class must reach 0; to reach it, all gaps must.
    """
    gap = below.clamp_min(0)  # a tie that is not a success is at the boundary
    root = gap / (gap - above).clamp_min(torch.finfo(above.dtype).tiny)
    if goal.targeted:
        return torch.where(below > 0, root, 0).amax(1)
    return torch.where(above <= 0, root, 1).amin(1)
