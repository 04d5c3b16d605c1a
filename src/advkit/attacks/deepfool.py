"""DeepFool."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.loop import iterate
from advkit.attacks.engine.minimum_norm import MinimumNormAttack, refine_to_boundary
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Best, Nearest
from advkit.attacks.engine.rows import select, update_rows
from advkit.core import checks
from advkit.core.losses import Loss, split_label_logit
from advkit.core.norms import DUAL, Norm, lp_norm, per_sample
from advkit.core.tensors import at_least_float32

_MOST = 9  # classes beside the label: the ten likeliest of the paper
_SLACK = 1.15  # how much steeper than it was before a class may have become
_FIRST = 1.001  # length of the first step in ways to the boundary, against rounding
_BLUNT = 3  # steps that run into the walls of the box
_REFINE_STEPS = 2


class _Move(NamedTuple):
    """What each sample carries from step to step."""

    slopes: Tensor  # (n, classes), how steep each class was last, 0 where unknown; (n, 1) at first
    lost: Tensor  # bool (n,), no class has a gradient


class _Crossing(NamedTuple):
    """The first iterate of each sample that is a success, and the last one before it."""

    x_adv: Tensor  # (n, *features), the success; the clean input where there was none
    violation: Tensor  # (n,), of the success, inf without one
    distance: Tensor  # (n,), of the success, inf without one
    inner: Tensor  # (n, *features), the last iterate that was not a success
    gap: Tensor  # (n,), its shortfall; 0 where there was none

    @property
    def outer(self) -> Nearest:
        """The successes; writing to them writes to the crossing."""
        return Nearest(self.x_adv, self.violation, self.distance)

    def improved(self, problem: Problem, at: Iterate) -> _Crossing:
        """Return the crossing with another iterate."""
        inner = torch.where(per_sample(at.success, at.x_adv), self.inner, at.x_adv)
        gap = torch.where(at.success, self.gap, at.violation)
        return _Crossing(*self.outer.improved(problem, at), inner, gap)


@dataclass(frozen=True, kw_only=True, repr=False)
class DeepFool(MinimumNormAttack):
    """DeepFool (Moosavi-Dezfooli, Fawzi and Frossard, 2016, arXiv:1511.04599), untargeted.

    Each step takes the logits for linear functions, finds the class whose boundary is nearest and
    goes there, a little further by the overshoot; the first success ends it.

    Deviations: the overshoot lengthens each step but the first instead of the sum of all (the first
    is longer by a thousandth), and a success is moved back along the last step, as far as it stays
    one, so that the overshoot costs no distance. The iterates stay within the bounds; from the
    fourth step on features at a bound that a step would push out of it are left out of the step,
    which otherwise loses what they were to bring and creeps towards the boundary. The classes
    considered are the likeliest at each iterate, not those at the input.

    Args:
        norm: `"l2"` or `"linf"`, of the steps and the distance.
        steps: at most so many; each costs one forward pass and a backward pass for each class that
            is considered.
        overshoot: share by which a step is longer than to the boundary, not negative.
        candidates: how many classes to consider, the likeliest beside the label; each costs a
            backward pass, none costs memory. `None` takes the nine likeliest, but leaves out those
            that would have to be 15 % steeper than they were, or than any class so far, to be
            nearer than what is found, until one step has proved to be enough.
        eps: `None`, or the radius of a ball on which longer perturbations are projected (Kalin et
            al., 2021), a number or one for each sample `(n,)`. Then it is a budget attack: a
            failure gives its last iterate in the ball.

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
        checks.one_of("norm", self.norm, tuple(DUAL))
        checks.integer("steps", self.steps, at_least=1)
        checks.not_negative("overshoot", self.overshoot)
        if self.candidates is not None:
            checks.integer("candidates", self.candidates, at_least=1)
        if self.eps is not None:
            checks.eps(self.eps)

    def _ascent_loss(self, *, targeted: bool) -> Loss:
        if targeted:
            raise ValueError("`target` must be None: DeepFool has no targeted form; FAB has one")
        return super()._ascent_loss(targeted=targeted)

    def _search(self, problem: Problem) -> Best | Nearest:
        """Return the nearest successes, or with `eps` what the ball holds of the crossings.

        In place of the template's search: the first step needs the graph of the pass that evaluates
        the clean inputs.
        """
        crossing = self._crossing(problem)
        if self.eps is None:
            return crossing.outer
        return self._into_ball(problem, crossing, checks.radii(self.eps, problem.x))

    def _into_ball(self, problem: Problem, crossing: _Crossing, eps: Tensor) -> Best:
        """Return the successes and failures projected onto the ball; a success within it counts."""
        outer = crossing.outer
        found = torch.where(per_sample(outer.success, problem.x), outer.x_adv, crossing.inner)
        x_adv = problem.project_to_ball(found, eps)
        return Best(x_adv, outer.violation.where(outer.distance <= eps, math.inf))

    def _partial_result(self, problem: Problem, kept: Best | Nearest) -> Best | Nearest:
        """Return the iterates `kept`, with `eps` only those in the ball."""
        if self.eps is None:
            return kept
        distance = lp_norm(
            at_least_float32(kept.x_adv) - at_least_float32(problem.x), self.norm
        )  # 16 bits would round it
        outside = distance > checks.radii(self.eps, problem.x)
        x_adv = torch.where(per_sample(outside, problem.x), problem.x, kept.x_adv)
        return Best(x_adv, kept.violation.masked_fill(outside, math.inf))

    def _crossing(self, problem: Problem) -> _Crossing:
        """Return where the walk of each sample crosses the boundary, refined."""
        crossing = self._walk(problem)
        if self.candidates is None:
            self._walk_again(problem, crossing)
        logits = problem.logits(crossing.inner)
        refine_to_boundary(problem, crossing.inner, logits, crossing.outer, _REFINE_STEPS)
        return crossing

    def _walk_again(self, problem: Problem, crossing: _Crossing) -> None:
        """Consider all candidates where one step was enough, in place.

        There the logits are as good as linear, and the nearest class is worth its price.
        """
        one = (crossing.inner == problem.x).flatten(1).all(1) & (crossing.gap > 0)
        rows = (one & crossing.outer.success).nonzero().flatten()
        if len(rows):
            other = replace(self, candidates=_MOST)._walk(problem.select(rows))
            nearer = other.distance < crossing.distance[rows]
            update_rows(crossing, rows[nearer], select(other, nearer))

    def _walk(self, problem: Problem) -> _Crossing:
        """Step to the nearest class boundary until it is crossed."""
        nothing = Nearest.empty(problem.x)
        unknown = torch.zeros_like(nothing.distance)
        return iterate(
            problem,
            problem.x,
            _Move(slopes=unknown[:, None], lost=nothing.success),
            self._step,
            steps=self.steps,
            best=_Crossing(*nothing, inner=problem.x.clone(), gap=unknown.clone()),
            finished=lambda at, move: at.success | move.lost,
            first=True,
        )

    def _step(self, i: int, problem: Problem, at: Iterate, move: _Move) -> tuple[Tensor, _Move]:
        unit, distance, slopes = self._nearest_plane(i, problem, at, move.slopes)
        lost = distance.isinf()
        straight = unit.sign() if self.norm == "linf" else unit
        lower, upper = problem.model.bounds
        least = torch.finfo(problem.x.dtype).eps * (upper - lower)  # a tie is no step of zero
        longer = 1 + self.overshoot if i else _FIRST
        # logits of 16 bits tie on a whole strip: there the overshoot is a share of the way so far
        ahead = torch.where(
            distance > 0, longer * distance, self.overshoot * problem.distance(at.x_adv)
        )
        length = torch.where(lost, 0, ahead + least)
        return problem.clip(at.x_adv + per_sample(length, unit) * straight), _Move(slopes, lost)

    def _nearest_plane(
        self, i: int, problem: Problem, at: Iterate, slopes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The nearest class boundary of the linearized logits.

        Returns:
            Its normal `(n, *features)` of dual norm 1, zero without a gradient; the distance to it
            `(n,)`, inf without one; and the slopes with what was learnt, `(n, classes)`.
        """
        own, others = split_label_logit(at.logits.detach(), problem.goal.labels)
        likeliest = others.topk(min(self.candidates or _MOST, others.shape[1] - 1), dim=1)
        slopes = slopes.to(others.dtype).expand_as(others).clone()
        unit, distance = torch.zeros_like(problem.x), torch.full_like(own, math.inf)
        no_gradient = torch.ones_like(own, dtype=torch.bool)
        for k, candidate in enumerate(likeliest.indices.unbind(1)):
            gap = own - likeliest.values[:, k]
            rows = torch.arange(len(gap), device=gap.device)
            if k and self.candidates is None:
                rows = rows[gap < _steepest_likely(slopes, candidate) * distance]
            if not len(rows):
                continue
            grad = _gradient_to(problem, at, candidate, rows)
            slope = self._slope(grad, own.dtype)
            no_gradient[rows] &= slope == 0
            if i >= _BLUNT:
                grad = problem.drop_active_bounds(at.x_adv[rows], grad)
                slope = self._slope(grad, own.dtype)
            slopes[rows, candidate[rows]] = slope
            reach = torch.where(slope > 0, gap[rows] / slope, math.inf)
            nearer = reach < distance[rows]
            rows, reach = rows[nearer], reach[nearer]
            distance[rows] = reach
            unit[rows] = (grad[nearer] / per_sample(slope[nearer], grad)).to(unit.dtype)
        problem.statistics.no_gradient[problem.rows] |= no_gradient
        return unit, distance, slopes

    def _slope(self, grad: Tensor, dtype: torch.dtype) -> Tensor:
        """How steep a logit difference with gradient `grad` is, `(n,)`, zero if not finite."""
        slope = lp_norm(grad, DUAL[self.norm]).to(dtype)
        return slope.where(slope.isfinite(), 0)


def _steepest_likely(slopes: Tensor, candidate: Tensor) -> Tensor:
    """How steep the class `candidate` `(n,)` may be: as it was, or as the steepest, and some more."""
    before = slopes.gather(1, candidate[:, None]).squeeze(1)
    return _SLACK * torch.where(before > 0, before, slopes.amax(1))


def _gradient_to(problem: Problem, at: Iterate, candidate: Tensor, rows: Tensor) -> Tensor:
    """Of the rival's logit minus the label's, for the samples `rows` `(m,)`: `(m, *features)`."""
    if len(rows) < len(candidate):
        mask = torch.zeros_like(candidate, dtype=torch.bool).index_fill_(0, rows, True)
        at, problem, candidate = (
            problem.select_for_backward(at, mask),
            problem.select(mask),
            candidate[mask],
        )
    pair = torch.stack([candidate, problem.goal.labels], dim=1)
    with torch.enable_grad():
        value = -at.logits.gather(1, pair).diff(dim=1).squeeze(1)
    return problem.input_gradient(at, value, again=True)
