"""Base of the attacks that run other attacks, each on the samples that are still robust."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from advkit.attacks.engine.base import BaseAttack, warn_of_random_logits
from advkit.attacks.engine.black_box import BlackBoxAttack, ByLabels, ByScores, by_scores
from advkit.attacks.engine.goal import TIE
from advkit.attacks.engine.loop import Stop
from advkit.attacks.engine.problem import Problem
from advkit.attacks.engine.records import Best, Nearest
from advkit.attacks.engine.rows import select, update_rows
from advkit.attacks.engine.runs import remaining_samples
from advkit.core import checks, sample_rows
from advkit.core.attack_options import for_samples, with_stop
from advkit.core.losses import Loss, margin
from advkit.core.protocols import Attack
from advkit.core.results import AttackInterrupted, AttackResult, InconclusiveWarning
from advkit.models import Classifier, DifferentiableClassifier, as_classifier
from advkit.models.convert import describe, has_gradients
from advkit.models.labels import given_labels

_IMPOSSIBLE = (
    "`model` must have gradients or scores for {name}, got {model}, which none of {others} can "
    "attack. Use HopSkipJump, or Transfer(attack=..., surrogate=...) from a differentiable "
    "surrogate."
)
_LEFT_OUT = (
    "{name} left out {others}: `model` lacks the outputs that they need. The others remain, and "
    "the result says less about robustness."
)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class StagedAttack(BlackBoxAttack):
    """Base of the attacks that consist of stages, which are attacks of one norm and budget.

    Each stage attacks the samples without a success so far. A failure keeps the strongest of the
    iterates that the stages return. A subclass defines the stages.
    """

    eps: float | Tensor
    stop: Stop | None = None

    @abstractmethod
    def _stages(self, classes: int) -> Sequence[Attack]:
        """Return the attacks to run on a model with `classes` classes."""

    def search(self, problem: Problem) -> Best | Nearest:
        """Search a batch that is not empty; the stages show their own progress bars."""
        return self._search(problem)

    def _problem(
        self, model: DifferentiableClassifier, x: Tensor, y: Tensor | None, target: Tensor | None
    ) -> Problem:
        problem = super()._problem(model, x, y, target)
        problem.statistics.stage = torch.full((len(problem.x),), -1, device=problem.x.device)
        return problem

    def _adapt_model(self, model: object) -> ByScores | ByLabels:
        classifier = as_classifier(model)
        has_scores = any(callable(getattr(classifier, name, None)) for name in ("logits", "scores"))
        return by_scores(classifier, type(self).__name__) if has_scores else ByLabels(classifier)

    def _ascent_loss(self, *, targeted: bool) -> Loss:
        return margin

    def _search(self, problem: Problem) -> Best:
        checks.radii(self.eps, problem.x)  # the stages get parts of it
        best = Best.unevaluated(problem.x)
        at = problem.evaluate_clean(best)
        stages = self._possible_stages(at.logits.shape[1], _classifier(problem))
        tally, stop = _Tally(problem, best.success), self.stop or "first"
        violations = [at.violation]
        first = min(stages)
        for i in range(max(stages) + 1):
            remaining = remaining_samples(best, stop)
            if stop == "first":
                remaining &= self._selected(i, violations)
            if i in stages and remaining.any():
                part = problem.select(remaining)
                attack = self._starting_from(best.x_adv[remaining], stages[i])
                attack = for_samples(with_stop(attack, stop), part.rows.cpu())
                # later stages would repeat warnings about the model and the budget
                with checks.muted(InconclusiveWarning if i == first else UserWarning):
                    found = _evaluated(part, _run_stage(i, attack, part, best, tally))
                better = found.violation < best.violation[part.rows]
                update_rows(best, part.rows[better], select(found, better))
            violations.append(best.violation.clone())
        return best

    def _selected(self, i: int, violations: Sequence[Tensor]) -> Tensor:
        """Return a mask `(n,)` of the samples that stage `i` attacks if they have no success.

        Args:
            i: number of the stage.
            violations: violation of each sample `(n,)` at the clean input, and that of its
                strongest iterate after each of the stages before `i`.
        """
        return torch.ones_like(violations[0], dtype=torch.bool)

    def _starting_from(self, x_adv: Tensor, attack: Attack) -> Attack:
        """Return `attack`, which may begin at the strongest iterates `x_adv` so far."""
        return attack

    def _possible_stages(self, classes: int, model: Classifier) -> dict[int, Attack]:
        """Return the stages that can attack `model` by their numbers, and warn of the others.

        Raises:
            TypeError: there are none.
        """
        stages = dict(enumerate(self._stages(classes)))
        possible = {i: attack for i, attack in stages.items() if _supports(attack, model)}
        left_out = [type(attack).__name__ for i, attack in stages.items() if i not in possible]
        others = ", ".join(dict.fromkeys(left_out))
        name = type(self).__name__
        if not possible:
            raise TypeError(_IMPOSSIBLE.format(name=name, model=describe(model), others=others))
        if others:
            checks.warn(_LEFT_OUT.format(name=name, others=others), InconclusiveWarning)
        return possible

    def _verify(self, problem: Problem, record: Best | Nearest) -> Best:
        if not has_gradients(_classifier(problem)):
            return super()._verify(problem, record)
        verified = Best(record.x_adv, problem.violation(record.x_adv))
        if not problem.statistics.sender.whole:  # a whole batch has other outputs when it changes
            warn_of_random_logits(record.violation, verified.violation, problem.x.dtype)
        return verified


class _Tally:
    """Passes of the stages of one run and the obstacles that they met, for each of `n` samples."""

    def __init__(self, problem: Problem, wrong: Tensor) -> None:
        self._statistics = problem.statistics
        self._wrong = wrong.clone()  # bool (n,), the inputs that no stage needs to fool
        n, device = problem.statistics.n, problem.x.device
        self._differentiated, self._usable, self._started = (
            torch.zeros(n, dtype=torch.bool, device=device) for _ in range(3)
        )

    def add(self, i: int, part: Problem, result: AttackResult) -> None:
        """Add the result of stage `i` for the samples `part`, and keep its successes.

        A sample had no gradient if no stage that computed one found a usable one, and no start if
        no stage could begin.
        """
        statistics, rows = self._statistics, part.rows
        differentiated = result.queries.backward > 0
        statistics.forward[rows] += result.queries.forward
        statistics.backward[rows] += result.queries.backward
        statistics.not_finite[rows] |= result.not_finite
        statistics.rejected[rows] |= result.rejected
        self._differentiated[rows] |= differentiated
        self._usable[rows] |= differentiated & ~result.no_gradient
        self._started[rows] |= ~result.no_start
        statistics.no_gradient[rows] = (self._differentiated & ~self._usable)[rows]
        statistics.no_start[rows] = ~self._started[rows]
        self._keep_successes(i, part, result)

    def _keep_successes(self, i: int, part: Problem, result: AttackResult) -> None:
        """Record the stage of new successes, and keep them if an error ends the run."""
        stage, record, rows = self._statistics.stage, self._statistics.best_so_far, part.rows
        new = result.success & (stage[rows] < 0) & ~self._wrong[rows]
        stage[rows[new]] = i
        if record is not None:
            found = Best(result.x_adv, torch.full_like(result.distance, -TIE))
            update_rows(record, rows[new], select(found, new))


def _run_stage(i: int, attack: Attack, part: Problem, best: Best, tally: _Tally) -> AttackResult:
    """Return the result of stage `i` for the samples `part`, also added to `tally`.

    A model that needs the whole batch gets the other samples as they are in `best`.
    """
    model = _classifier(part)
    labels = given_labels(model, part.goal.labels)
    goal = {"target" if part.goal.targeted else "y": labels.clone()}
    try:
        with sample_rows.selected(part.rows, part.statistics.n, batch=best.x_adv):
            result = attack.run(model, part.x.clone(), **goal)
    except AttackInterrupted as error:
        if error.result is not None:
            tally.add(i, part, error.result)
        raise
    tally.add(i, part, result)
    return result


def _evaluated(part: Problem, result: AttackResult) -> Best:
    """Return the iterates of a stage, evaluated; the label that it saw decides on success."""
    at = part.forward(result.x_adv, differentiate=False)
    violation = at.violation.clamp_min(TIE).where(~result.success, at.violation.clamp_max(0))
    return Best(result.x_adv, violation)


def _supports(attack: Attack, model: Classifier) -> bool:
    """Return whether `model` has the outputs that `attack` needs, as far as that is known."""
    return not isinstance(attack, BaseAttack) or attack.supports(model)


def _classifier(problem: Problem) -> Classifier:
    """Return the model of the caller, which the adapted model of `problem` wraps."""
    adapted = problem.model
    return adapted.model if isinstance(adapted, ByScores | ByLabels) else adapted
