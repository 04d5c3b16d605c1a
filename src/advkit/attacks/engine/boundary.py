"""Moves of successes to the decision boundary, and past it where they are not confirmed."""

from __future__ import annotations

import torch
from torch import Tensor

from advkit.attacks.engine.goal import Goal
from advkit.attacks.engine.problem import Problem
from advkit.attacks.engine.records import Best, Nearest
from advkit.attacks.engine.rows import take, write
from advkit.core.norms import per_sample

# A success that is not confirmed is moved out to these multiples of its perturbation: it lies on
# the boundary, and a batch of another size rounds differently. The last one is the clean input.
OUTWARD_FACTORS = (1 + 2**-10, 1 + 2**-7, 1 + 2**-4, 0)

BOUNDARY_MARGIN = 1.001  # a refined success stays that far past the boundary, against rounding
FIRST_SHARE = 0.9  # of the way to a success, tried before the way is halved


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
    rows = (nearest.success & (problem.goal.shortfall(logits) > 0)).nonzero().flatten()
    if not len(rows) or not steps:
        return nearest
    part, best, inner = problem.take(rows), take(nearest, rows), inner[rows]
    span = best.x_adv - inner
    low, high = torch.zeros_like(best.distance), torch.ones_like(best.distance)
    below = part.goal.gaps(logits[rows])
    above = part.goal.gaps(part.judge(best.x_adv, differentiate=False).logits)
    for _ in range(steps):
        root = BOUNDARY_MARGIN * linear_root(below, above, part.goal)
        share = low + (high - low) * root.clamp(0.02, 0.98)
        at = part.judge(part.clip(inner + per_sample(share, span) * span), differentiate=False)
        best, gaps = best.improved(part, at), part.goal.gaps(at.logits)
        low, high = torch.where(at.success, low, share), torch.where(at.success, share, high)
        # the end that stays put counts half (Illinois): bends would keep it for ever
        below = torch.where(at.success[:, None], below / 2, gaps)
        above = torch.where(at.success[:, None], gaps, above / 2)
    write(nearest, rows, best)
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


def bisect_to_boundary(problem: Problem, nearest: Nearest, halvings: int) -> Nearest:
    """Move each success towards its input by bisection, as far as it stays one.

    Returns:
        `nearest`, which is written to.
    """
    rows = nearest.success.nonzero().flatten()
    if not len(rows):
        return nearest
    part, best = problem.take(rows), take(nearest, rows)
    span = best.x_adv - part.x
    low, high = torch.zeros_like(best.distance), torch.ones_like(best.distance)
    share = FIRST_SHARE * high
    for _ in range(halvings):
        x_adv = part.clip(part.x + per_sample(share, span) * span)
        at = part.judge(x_adv, differentiate=False)
        best = best.improved(part, at)
        low, high = torch.where(at.success, low, share), torch.where(at.success, share, high)
        share = (low + high) / 2
    write(nearest, rows, best)
    return nearest


def move_outward(problem: Problem, found: Best | Nearest, verified: Best) -> Best:
    """Move the successes out that a second evaluation does not confirm.

    Args:
        problem: `n` samples.
        found: what the search has found.
        verified: the iterates of `found`, evaluated once more.

    Returns:
        The iterates, as they were evaluated last.
    """
    success, delta, best = found.success, found.x_adv - problem.x, verified
    for factor in OUTWARD_FACTORS:
        lost = success & ~best.success
        if not lost.any():
            break
        moved = problem.clip(problem.x + factor * delta)
        x_adv = torch.where(per_sample(lost, moved), moved, best.x_adv)
        best = Best(x_adv, problem.shortfall(x_adv))
    return best


def drop_active_bounds(problem: Problem, x_adv: Tensor, grad: Tensor) -> Tensor:
    """Return `grad` without the features at a bound that a step along it would push out."""
    lower, upper = problem.model.bounds
    active = (x_adv <= lower) & (grad < 0) | (x_adv >= upper) & (grad > 0)
    return torch.where(active, 0, grad)
