"""DeepFool."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.loop import iterate
from advkit.attacks.engine.minimum_norm import (
    OptionalBudgetAttack,
    into_ball,
    refine_to_boundary,
)
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Best, Nearest
from advkit.attacks.engine.rows import select, update_rows
from advkit.core import checks
from advkit.core.losses import Loss, split_label_logit
from advkit.core.norms import DUAL, Norm, lp_norm, per_sample


@dataclass(frozen=True)
class Tuning:
    """Constants of the walk."""

    max_candidates: int = 9  # classes other than the label: the ten likeliest of the paper
    max_slope_ratio: float = 1.15  # of a class to its last slope; see docs/performance.md
    first_step_factor: float = 1.001  # first step over the distance to the boundary: rounding
    clipped_steps: int = 3  # later steps leave out features at a bound
    refine_steps: int = 2  # forward passes that move a success to the boundary


TUNING = Tuning()


class _WalkState(NamedTuple):
    """State of each sample from step to step."""

    slopes: Tensor  # (n, classes), last slope of each class, 0 if unknown; (n, 1) at first
    no_gradient: Tensor  # bool (n,), no class has a gradient


class _Crossing(NamedTuple):
    """First iterate of each sample that is a success, and the last one before it."""

    x_adv: Tensor  # (n, *features), the success, or the clean input without one
    violation: Tensor  # (n,), of the success, inf without one
    distance: Tensor  # (n,), of the success, inf without one
    inner: Tensor  # (n, *features), the last iterate that was not a success
    gap: Tensor  # (n,), violation of that iterate, 0 without one

    @property
    def outer(self) -> Nearest:
        """Successes; writing to them writes to the crossing."""
        return Nearest(self.x_adv, self.violation, self.distance)

    def improved(self, problem: Problem, at: Iterate) -> _Crossing:
        """Return the crossing, updated with the iterate `at`."""
        inner = torch.where(per_sample(at.success, at.x_adv), self.inner, at.x_adv)
        gap = torch.where(at.success, self.gap, at.violation)
        return _Crossing(*self.outer.improved(problem, at), inner, gap)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DeepFool(OptionalBudgetAttack):
    """DeepFool (Moosavi-Dezfooli, Fawzi and Frossard, 2016, arXiv:1511.04599), untargeted.

    Each step linearizes the logits, finds the class whose boundary is nearest, and moves to that
    boundary and beyond it by the overshoot. The first success ends the walk.

    Deviations from the paper:

    - The overshoot lengthens each step except the first, instead of the sum of all steps. The
      first step is longer by a thousandth.
    - A success is moved back along the last step as far as it remains a success, so that the
      overshoot does not add to the distance.
    - The iterates are clipped to the bounds. From the fourth step on, a step leaves out features at
      a bound that it would push outward: clipping would otherwise make each step too short.
    - The candidate classes are the likeliest at each iterate, not at the input.

    Args:
        norm: `"l2"` or `"linf"`, of the steps and the distance.
        steps: greatest number of steps; each costs one forward pass, and one backward pass for each
            candidate class.
        overshoot: fraction by which a step is longer than the distance to the boundary, not
            negative.
        candidates: number of candidate classes, the likeliest other than the label; each costs a
            backward pass and no memory. `None` takes the nine likeliest, without those that would
            have to be 15 % steeper than at the last step, or than any class so far, to be the
            nearest. Samples whose first step succeeds are then searched again with all nine.
        eps: `None`, or the radius of a ball onto which longer perturbations are projected (Kalin et
            al., 2021), a number or one for each sample `(n,)`. DeepFool is a budget attack then: a
            failure returns its last iterate, projected onto the ball.

    Raises:
        ValueError: a value is out of its range, or the call has a target.
        TypeError: a value has the wrong type.

    Example:
        >>> import advkit, torch
        >>> from advkit import attacks
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        >>> model = advkit.TorchClassifier(net, bounds=(-1, 1))
        >>> result = attacks.DeepFool().run(model, torch.tensor([[0.3, 0.4]]))
        >>> round(result.distance.item(), 3)
        0.5
    """

    norm: Norm = "l2"
    steps: int = 50
    overshoot: float = 0.02
    candidates: int | None = None
    eps: float | Tensor | None = None

    def __post_init__(self) -> None:
        checks.one_of("norm", self.norm, ("l2", "linf"))
        checks.integer("steps", self.steps, at_least=1)
        checks.not_negative("overshoot", self.overshoot)
        if self.candidates is not None:
            checks.integer("candidates", self.candidates, at_least=1)
        if self.eps is not None:
            checks.eps(self.eps)

    def _ascent_loss(self, *, targeted: bool) -> Loss:
        if targeted:
            raise ValueError(
                "`target` must be None for DeepFool, which has no targeted form. Use FAB."
            )
        return super()._ascent_loss(targeted=targeted)

    def _search(self, problem: Problem) -> Best | Nearest:
        """Return the nearest successes, or with `eps` the iterates in the ball.

        This overrides the search of the base class because the first step needs the graph of the
        pass that evaluates the clean inputs.
        """
        crossing = self._crossing(problem)
        if self.eps is None:
            return crossing.outer
        return self._into_ball(problem, crossing, checks.radii(self.eps, problem.x))

    def _into_ball(self, problem: Problem, crossing: _Crossing, eps: Tensor) -> Best:
        """Return the success or last iterate of each sample, projected onto the ball."""
        outer = crossing.outer
        last = torch.where(per_sample(outer.success, problem.x), outer.x_adv, crossing.inner)
        return into_ball(problem, last, outer, eps)

    def _crossing(self, problem: Problem) -> _Crossing:
        """Return the refined crossing of the boundary of each sample."""
        crossing = self._walk(problem)
        if self.candidates is None:
            self._walk_again(problem, crossing)
        logits = problem.logits(crossing.inner)
        refine_to_boundary(problem, crossing.inner, logits, crossing.outer, TUNING.refine_steps)
        return crossing

    def _walk_again(self, problem: Problem, crossing: _Crossing) -> None:
        """Walk again with all candidates for samples that one step was enough for, in place.

        Their logits are close to linear, so that the nearest class gives a nearer success.
        """
        one = (crossing.inner == problem.x).flatten(1).all(1) & (crossing.gap > 0)
        rows = (one & crossing.outer.success).nonzero().flatten()
        if len(rows):
            everything = replace(self, candidates=TUNING.max_candidates)
            other = everything._walk(problem.select(rows))
            nearer = other.distance < crossing.distance[rows]
            update_rows(crossing, rows[nearer], select(other, nearer))

    def _walk(self, problem: Problem) -> _Crossing:
        """Step to the nearest class boundary until it is crossed."""
        empty = Nearest.empty(problem.x)
        unknown = torch.zeros_like(empty.distance)
        return iterate(
            problem,
            problem.x,
            _WalkState(slopes=unknown[:, None], no_gradient=empty.success),
            self._step,
            steps=self.steps,
            best=_Crossing(*empty, inner=problem.x.clone(), gap=unknown.clone()),
            finished=lambda at, walk: at.success | walk.no_gradient,
            first=True,
        )

    def _step(
        self, i: int, problem: Problem, at: Iterate, walk: _WalkState
    ) -> tuple[Tensor, _WalkState]:
        unit, distance, slopes = self._nearest_plane(i, problem, at, walk.slopes)
        no_gradient = distance.isinf()
        straight = unit.sign() if self.norm == "linf" else unit
        lower, upper = problem.model.bounds
        # a step from a tie is longer than zero
        min_length = torch.finfo(problem.x.dtype).eps * (upper - lower)
        factor = 1 + self.overshoot if i else TUNING.first_step_factor
        # logits of 16 bits tie on a whole strip, where the overshoot is relative to the distance
        # from the input
        tied_length = self.overshoot * problem.distance(at.x_adv)
        length = torch.where(distance > 0, factor * distance, tied_length) + min_length
        length = torch.where(no_gradient, 0, length)
        x_adv = problem.clip(at.x_adv + per_sample(length, unit) * straight)
        return x_adv, _WalkState(slopes, no_gradient)

    def _nearest_plane(
        self, i: int, problem: Problem, at: Iterate, slopes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the nearest class boundary of the linearized logits.

        Returns:
            Its normal `(n, *features)` of dual norm 1, zero without a gradient; the distance to it
            `(n,)`, inf without one; and the updated slopes, `(n, classes)`.
        """
        own, others = split_label_logit(at.logits.detach(), problem.goal.labels)
        likeliest = others.topk(
            min(self.candidates or TUNING.max_candidates, others.shape[1] - 1), dim=1
        )
        slopes = slopes.to(others.dtype).expand_as(others).clone()
        unit, distance = torch.zeros_like(problem.x), torch.full_like(own, math.inf)
        no_gradient = torch.ones_like(own, dtype=torch.bool)
        for k, candidate in enumerate(likeliest.indices.unbind(1)):
            gap = own - likeliest.values[:, k]
            rows = torch.arange(len(gap), device=gap.device)
            if k and self.candidates is None:
                rows = rows[gap < _max_slope(slopes, candidate) * distance]
            if not len(rows):
                continue
            grad = _gradient_to(problem, at, candidate, rows)
            slope = self._slope(grad, own.dtype)
            no_gradient[rows] &= slope == 0
            if i >= TUNING.clipped_steps:
                grad = problem.drop_active_bounds(at.x_adv[rows], grad)
                slope = self._slope(grad, own.dtype)
            slopes[rows, candidate[rows]] = slope
            to_plane = torch.where(slope > 0, gap[rows] / slope, math.inf)
            nearer = to_plane < distance[rows]
            rows = rows[nearer]
            distance[rows] = to_plane[nearer]
            unit[rows] = (grad[nearer] / per_sample(slope[nearer], grad)).to(unit.dtype)
        problem.statistics.no_gradient[problem.rows] |= no_gradient
        return unit, distance, slopes

    def _slope(self, grad: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the dual norm `(n,)` of the gradient of a logit difference, 0 if not finite."""
        slope = lp_norm(grad, DUAL[self.norm]).to(dtype)
        return slope.where(slope.isfinite(), 0)


def _max_slope(slopes: Tensor, candidate: Tensor) -> Tensor:
    """Return the greatest slope `(n,)` expected of the class `candidate` `(n,)`.

    It is a multiple of the slope of the class at the last step, or of the steepest class so far.
    """
    before = slopes.gather(1, candidate[:, None]).squeeze(1)
    return TUNING.max_slope_ratio * torch.where(before > 0, before, slopes.amax(1))


def _gradient_to(problem: Problem, at: Iterate, candidate: Tensor, rows: Tensor) -> Tensor:
    """Return the gradient of the candidate's logit minus the label's, for the samples `rows`.

    Args:
        problem: `n` samples.
        at: their iterates, with a graph.
        candidate: a class of each sample, `(n,)`.
        rows: indices of `m` samples, in ascending order.

    Returns:
        The gradients `(m, *features)`.
    """
    if len(rows) < len(candidate):
        mask = torch.zeros_like(candidate, dtype=torch.bool).index_fill_(0, rows, True)
        at = problem.select_for_backward(at, mask)
        problem, candidate = problem.select(mask), candidate[mask]
    pair = torch.stack([candidate, problem.goal.labels], dim=1)
    with torch.enable_grad():
        value = -at.logits.gather(1, pair).diff(dim=1).squeeze(1)
    return problem.input_gradient(at, value, again=True)
