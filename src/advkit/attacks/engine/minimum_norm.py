"""The template of minimum-norm attacks, which look for the nearest success."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from advkit.attacks.engine.base import GradientAttack
from advkit.attacks.engine.boundary import move_outward, refine_to_boundary
from advkit.attacks.engine.problem import Judged, Problem
from advkit.attacks.engine.records import Best, Nearest, evaluate_clean
from advkit.attacks.engine.rows import write
from advkit.core.losses import Loss, margin, own_and_others


@dataclass(frozen=True, kw_only=True, repr=False)
class MinimumNormAttack(GradientAttack):
    """A gradient attack that looks for the nearest success; a failure gives the clean input.

    Evaluates the clean batch, searches the samples that are not misclassified from the start,
    refines what is found to the decision boundary, and verifies it. A subclass supplies the search.
    """

    _refine_steps: ClassVar[int] = 0  # forward passes that move a success to the boundary

    def _search_nearest(self, problem: Problem, at: Judged) -> Nearest:
        """Return the nearest successes of samples whose clean inputs, evaluated `at`, are none.

        An attack that evaluates the clean inputs itself overrides `_search` instead.
        """
        raise NotImplementedError

    def _search(self, problem: Problem) -> Best | Nearest:
        nearest = self._empty_record(problem)
        at = evaluate_clean(problem, nearest)
        rows = (~nearest.success).nonzero().flatten()
        if len(rows):
            part, at = problem.take(rows), at.take(rows)
            found = self._search_nearest(part, at)
            found = refine_to_boundary(part, part.x, at.logits, found, self._refine_steps)
            write(nearest, rows, found)
        return nearest

    def _verify(self, problem: Problem, found: Best | Nearest) -> Best:
        verified = super()._verify(problem, found)
        return move_outward(problem, found, verified) if isinstance(found, Nearest) else verified

    def _empty_record(self, problem: Problem) -> Nearest:
        return Nearest.empty(problem.x)

    def _objective(self, *, targeted: bool) -> Loss:
        return margin


def candidates(at: Judged, problem: Problem, most: int) -> list[Tensor]:
    """Return the likeliest classes besides the label, at most `most`, each `(n,)`.

    An untargeted attack goes for one after another. A targeted one has none to choose from.
    """
    if problem.goal.targeted:
        return []
    others = own_and_others(at.logits, problem.goal.labels)[1]
    most = min(most, others.shape[1] - 1)
    return list(others.topk(most, dim=1).indices.unbind(1))
