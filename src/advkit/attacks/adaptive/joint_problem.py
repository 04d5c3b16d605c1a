"""A problem that a model and its detector of inputs judge in one pass."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from advkit.attacks.adaptive.guarded_model import Guarded
from advkit.attacks.engine.goal import Goal
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.core import checks
from advkit.core.losses import split_label_logit
from advkit.core.norms import lp_norm, normalize, per_sample

_PARALLEL = 1e-4  # what is left of a gradient beside another one, if that is all, is rounding


def alarm(excess: Tensor) -> Tensor:
    """The sum of what parts `(n, parts)` are above their limits, else that of the nearest to it.

    Minus infinity without parts.
    """
    loud = excess.clamp_min(0).sum(1)
    if not excess.shape[1]:
        return loud - math.inf
    return torch.where(loud > 0, loud, excess.amax(1))


@dataclass(frozen=True)
class Joint(Problem):
    """A problem that model and detector judge in one pass: wrong, and no part above its limit.

    Of what it judges `logits` are the model's and `value` is the subclass's; `violation` is by how
    much the worst of all is missed, the class in logits and a part in the units of its excess.
    """

    guarded: Guarded

    def select(self, mask: Tensor) -> Self:
        """The same for the samples where bool `mask` `(n,)` is true, or for those rows."""
        part: Any = super().select(mask)
        return part  # type: ignore[no-any-return]  # `replace` keeps the class

    def forward(self, x_adv: Tensor, *, differentiate: bool, first: bool = False) -> Iterate:
        """One forward pass through both; see `Problem.forward`."""
        x_adv = x_adv.detach().requires_grad_(differentiate)
        with torch.set_grad_enabled(differentiate):
            logits = self.logits(x_adv)
            with self.as_current():
                excess = self.guarded.margin_over_threshold(x_adv, self._heading(logits.detach()))
                value = self._value(x_adv, logits, excess)
        if first:
            self.check_clean(x_adv, logits)
            checks.warn_of_probabilities(logits)
        missed = self.violation_of(logits.detach())
        worst = torch.cat([missed[:, None], excess.detach().to(missed)], 1).amax(1)
        at = Iterate(x_adv, self.rows, None, logits, value, worst)
        self.update_best(at)
        return at

    @abstractmethod
    def _value(self, x_adv: Tensor, logits: Tensor, excess: Tensor) -> Tensor:
        """What is climbed, `(n,)` or `(n, goals)`, with its graph."""

    def _heading(self, logits: Tensor) -> Tensor:
        """The class that each iterate is on its way to, `(n,)`: its answer where that is wrong."""
        if self.goal.targeted:
            return self.goal.labels
        return split_label_logit(logits, self.goal.labels)[1].argmax(1)


AnyJoint = TypeVar("AnyJoint", bound=Joint)


def recast(kind: type[AnyJoint], problem: Problem, **more: Any) -> AnyJoint:
    """`problem` as one of the `kind` given."""
    shared = {part.name: getattr(problem, part.name) for part in fields(Problem)}
    return kind(**{**shared, **more})


def towards(problem: AnyJoint, classes: Tensor) -> AnyJoint:
    """`problem` with one class of each sample, `(n,)`, as the only one that will do."""
    goal = Goal(classes, problem.goal.max_label, True, problem.goal.confidence)
    return replace(problem, goal=goal)


@dataclass(frozen=True)
class TwoGoals(Joint):
    """What is climbed is the class loss and minus the alarm, `(n, 2)`, one of them at a time."""

    orthogonal: bool = False

    def _value(self, x_adv: Tensor, logits: Tensor, excess: Tensor) -> Tensor:
        ascent = self.goal.objective(self.loss, logits)
        return torch.stack([ascent, -alarm(excess).to(ascent)], 1)

    def ascent_direction(self, at: Iterate) -> Tensor:
        """Up the loss while the class is not reached, then down the alarm; `(n, *features)`.

        Beyond success it is whichever of the two is nearer to its limit. If `orthogonal`, in that
        part of the direction that leaves the other goal no worse.
        """
        missed = self.goal.violation(at.logits.detach())
        silence = (missed <= 0) & (-at.value.detach()[:, 1] > missed)
        if not self.orthogonal:
            with torch.enable_grad():
                chosen = at.value.gather(1, silence.long()[:, None]).squeeze(1)
            return self.mask_invalid(self.input_gradient(at, chosen))
        climbed, other = self.both(at)
        silence = per_sample(silence, climbed)
        pair = (torch.where(silence, other, climbed), torch.where(silence, climbed, other))
        return self.mask_invalid(_without(*pair))

    def both(self, at: Iterate) -> tuple[Tensor, Tensor]:
        """The gradients of the two, each `(n, *features)`; zero of an alarm that nothing raises."""
        with torch.enable_grad():
            loss, quiet = at.value.unbind(1)
        if not self.guarded.detectors:
            grad = self.input_gradient(at, loss)
            return grad, torch.zeros_like(grad)
        return self.input_gradient(at, loss, again=True), self.input_gradient(at, quiet)


def _without(grad: Tensor, other: Tensor) -> Tensor:
    """Each `grad` `(n, *features)` without what in it opposes `other`, if anything is left then."""
    unit = normalize(other, "l2")
    along = (grad * unit).flatten(1).sum(1).clamp_max(0)
    across = grad - per_sample(along, grad) * unit
    left = lp_norm(across, "l2") > _PARALLEL * lp_norm(grad, "l2")
    return torch.where(per_sample(left, grad), across, grad)
