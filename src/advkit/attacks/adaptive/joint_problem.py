"""Problems whose success depends on a model and on a detector of inputs, in one pass."""

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

MIN_ORTHOGONAL = 1e-4  # an orthogonal part below this fraction of the gradient is rounding


def total_margin(margins: Tensor) -> Tensor:
    """Return the sum `(n,)` of the positive `margins` `(n, parts)`, or the greatest without one.

    It is minus infinity without parts.
    """
    above = margins.clamp_min(0).sum(1)
    if not margins.shape[1]:
        return above - math.inf
    return torch.where(above > 0, above, margins.amax(1))


@dataclass(frozen=True)
class JointProblem(Problem):
    """Problem of a model and a detector: success is a wrong label with no part over its threshold.

    The `logits` of an iterate are those of the model, and a subclass defines its `value`. The
    `violation` is the greatest of the violation of the goal, in logits, and of the margins of the
    parts over their thresholds.
    """

    guarded: Guarded

    def select(self, mask: Tensor) -> Self:
        """Return the problem of the samples that `mask` selects, a mask or indices."""
        part: Any = super().select(mask)
        return part  # type: ignore[no-any-return]  # `replace` keeps the class

    def forward(
        self, x_adv: Tensor, *, differentiate: bool, first: bool = False, allowed: bool = True
    ) -> Iterate:
        """Evaluate model and detector in one forward pass; see `Problem.forward`."""
        x_adv = x_adv.detach().requires_grad_(differentiate)
        with torch.set_grad_enabled(differentiate):
            logits = self.logits(x_adv)
            with self.as_current():
                labels = self._target_class(logits.detach())
                margins = self.guarded.margin_over_threshold(x_adv, labels)
                value = self._value(x_adv, logits, margins)
        if first:
            self.check_clean(x_adv, logits)
            checks.warn_of_probabilities(logits)
        of_goal = self.violation_of(logits.detach())
        violation = torch.cat([of_goal[:, None], margins.detach().to(of_goal)], 1).amax(1)
        at = Iterate(x_adv, self.rows, None, logits, value, violation)
        if allowed:
            self.update_best(at)
        return at

    @abstractmethod
    def _value(self, x_adv: Tensor, logits: Tensor, margins: Tensor) -> Tensor:
        """Return the objective to maximize, `(n,)` or `(n, objectives)`, with its graph."""

    def _target_class(self, logits: Tensor) -> Tensor:
        """Return the target, or the likeliest class other than the label, of each iterate, `(n,)`.

        For a misclassified iterate this is the predicted class.
        """
        if self.goal.targeted:
            return self.goal.labels
        return split_label_logit(logits, self.goal.labels)[1].argmax(1)


AnyJoint = TypeVar("AnyJoint", bound=JointProblem)


def cast_problem(kind: type[AnyJoint], problem: Problem, **changes: Any) -> AnyJoint:
    """Return `problem` as an instance of `kind`, with the fields in `changes` set."""
    shared = {part.name: getattr(problem, part.name) for part in fields(Problem)}
    return kind(**{**shared, **changes})


def with_target(problem: AnyJoint, target: Tensor) -> AnyJoint:
    """Return `problem` with the class `target` `(n,)` of each sample as its goal."""
    goal = Goal(target, problem.goal.max_label, True, problem.goal.confidence)
    return replace(problem, goal=goal)


@dataclass(frozen=True)
class TwoObjectives(JointProblem):
    """Joint problem that maximizes the class loss or minus the total margin, one at a time.

    `value` has both, `(n, 2)`.
    """

    orthogonal: bool = False

    def _value(self, x_adv: Tensor, logits: Tensor, margins: Tensor) -> Tensor:
        objective = self.goal.objective(self.loss, logits)
        return torch.stack([objective, -total_margin(margins).to(objective)], 1)

    def ascent_direction(self, at: Iterate) -> Tensor:
        """Return the direction of each step, `(n, *features)`.

        It increases the loss while the class is not reached, and then decreases the total margin.
        After a success it improves the objective that is nearer to its limit. With `orthogonal`, it
        leaves out the part that opposes the other objective.
        """
        of_goal = self.goal.violation(at.logits.detach())
        evades = (of_goal <= 0) & (-at.value.detach()[:, 1] > of_goal)
        if not self.orthogonal:
            with torch.enable_grad():
                chosen = at.value.gather(1, evades.long()[:, None]).squeeze(1)
            return self.mask_invalid(self.input_gradient(at, chosen))
        of_class, of_detector = self.gradients(at)
        evades = per_sample(evades, of_class)
        chosen = torch.where(evades, of_detector, of_class)
        other = torch.where(evades, of_class, of_detector)
        return self.mask_invalid(_without_conflict(chosen, other))

    def gradients(self, at: Iterate) -> tuple[Tensor, Tensor]:
        """Return the gradients of both objectives, each `(n, *features)`.

        Without detectors the second one is zero.
        """
        with torch.enable_grad():
            of_class, of_detector = at.value.unbind(1)
        if not self.guarded.detectors:
            grad = self.input_gradient(at, of_class)
            return grad, torch.zeros_like(grad)
        return self.input_gradient(at, of_class, again=True), self.input_gradient(at, of_detector)


def _without_conflict(grad: Tensor, other: Tensor) -> Tensor:
    """Return `grad` `(n, *features)` without the part that opposes `other`.

    A gradient that only opposes `other` is returned whole.
    """
    unit = normalize(other, "l2")
    along = (grad * unit).flatten(1).sum(1).clamp_max(0)
    orthogonal = grad - per_sample(along, grad) * unit
    remains = lp_norm(orthogonal, "l2") > MIN_ORTHOGONAL * lp_norm(grad, "l2")
    return torch.where(per_sample(remains, grad), orthogonal, grad)
