"""The template of minimum-norm attacks, which look for the nearest success."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from advkit.attacks.engine.base import GradientAttack
from advkit.attacks.engine.goal import TIE, Goal
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Best, Nearest
from advkit.attacks.engine.rows import select, update_rows
from advkit.core.losses import Loss, margin, split_label_logit
from advkit.core.norms import per_sample, steepest

_TIED = 3  # classes that are tried at a tie
_DOUBLINGS = 10  # of the step off a tie: logits of 16 bits tie on a whole strip
BOUNDARY_MARGIN = 1.001  # a refined success stays that far past the boundary, against rounding


@dataclass(frozen=True, kw_only=True, repr=False)
class MinimumNormAttack(GradientAttack):
    """A gradient attack that looks for the nearest success; a failure gives the clean input.

    Evaluates the clean batch, searches the samples that are not misclassified from the start, and
    refines what is found to the decision boundary. A subclass supplies the search.
    """

    _refine_steps: ClassVar[int] = 0  # forward passes that move a success to the boundary

    def _search(self, problem: Problem) -> Best | Nearest:
        nearest = self._empty_record(problem)
        at = problem.evaluate_clean(nearest)
        rows = (~nearest.success).nonzero().flatten()
        if len(rows):
            part, at = problem.select(rows), at.select(rows)
            found = self._search_nearest(part, at)
            tied = (at.violation <= TIE) & ~found.success
            if tied.any():
                update_rows(found, tied.nonzero().flatten(), step_off_ties(part.select(tied)))
            found = refine_to_boundary(part, part.x, at.logits, found, self._refine_steps)
            update_rows(nearest, rows, found)
        return nearest

    def _search_nearest(self, problem: Problem, at: Iterate) -> Nearest:
        """Return the nearest successes of samples whose clean inputs, evaluated `at`, are none.

        An attack that evaluates the clean inputs itself overrides `_search` instead.
        """
        raise NotImplementedError

    def _empty_record(self, problem: Problem) -> Nearest:
        return Nearest.empty(problem.x)

    def _ascent_loss(self, *, targeted: bool) -> Loss:
        return margin


def step_off_ties(problem: Problem) -> Nearest:
    """Return successes next to clean inputs that lie on the boundary without being successes.

    There every attack that takes the way to the boundary for its step stands still.
    """
    nearest = Nearest.empty(problem.x)
    if problem.norm == "l0":
        return nearest
    at = problem.forward(problem.x, differentiate=False)
    candidate_classes: list[Tensor | None] = [*candidates(at, problem.goal, _TIED)]
    for candidate in candidate_classes or [None]:
        nearest = _step_off_tie(problem.with_candidate(candidate), nearest)
        if nearest.success.all():
            break
    return nearest


def _step_off_tie(problem: Problem, nearest: Nearest) -> Nearest:
    """Return the nearest successes, those of steps along the gradient among them.

    The first step is the smallest that the dtype knows at the bounds; it is doubled until it is a
    success.
    """
    at = problem.forward(problem.x, differentiate=True)
    gradient, bounds = problem.ascent_direction(at), problem.model.bounds
    length = torch.finfo(problem.x.dtype).eps * (bounds[1] - bounds[0])
    for _ in range(_DOUBLINGS):
        lengths = torch.full_like(nearest.distance, length)
        move = steepest(gradient, lengths.to(gradient.dtype), problem.norm, problem.x, bounds)
        at = problem.forward(problem.clip(problem.x + move), differentiate=False)
        nearest = nearest.improved(problem, at)
        if nearest.success.all():
            break
        length *= 2
    return nearest


def candidates(at: Iterate, goal: Goal, most: int) -> list[Tensor]:
    """Return the likeliest classes besides the label, at most `most`, each `(n,)`.

    An untargeted attack goes for one after another. A targeted one has none to choose from.
    """
    if goal.targeted:
        return []
    others = split_label_logit(at.logits, goal.labels)[1]
    most = min(most, others.shape[1] - 1)
    return list(others.topk(most, dim=1).indices.unbind(1))


def refine_to_boundary(
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

    Returns:
        `nearest`, which is written to.
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
        share = low + (high - low) * root.clamp(0.02, 0.98)
        at = part.forward(part.clip(inner + per_sample(share, span) * span), differentiate=False)
        best, gaps = best.improved(part, at), part.goal.gaps(at.logits)
        low, high = torch.where(at.success, low, share), torch.where(at.success, share, high)
        # the end that stays put counts half (Illinois): bends would keep it for ever
        below = torch.where(at.success[:, None], below / 2, gaps)
        above = torch.where(at.success[:, None], gaps, above / 2)
    update_rows(nearest, rows, best)
    return nearest


def linear_root(below: Tensor, above: Tensor, goal: Goal) -> Tensor:
    """Return where straight lines between two points first meet the goal, as a share `(n,)`.

    Args:
        below: `Goal.gaps` at the point that is not a success, `(n, classes)`.
        above: `Goal.gaps` at the success, `(n, classes)`.
        goal: leaving a label takes one class, reaching one takes all.
    """
    ahead = below.clamp_min(0)  # a tie that is not a success is at the boundary
    root = ahead / (ahead - above).clamp_min(torch.finfo(above.dtype).tiny)
    if goal.targeted:
        return torch.where(below > 0, root, 0).amax(1)
    return torch.where(above <= 0, root, 1).amin(1)
