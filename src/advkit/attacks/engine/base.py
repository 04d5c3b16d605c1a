"""The base of the attacks: checks before the search, verification and the result after it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from advkit.attacks.engine.goal import Goal
from advkit.attacks.engine.logit_scale import LogitScale
from advkit.attacks.engine.problem import Problem
from advkit.attacks.engine.records import Best, Nearest
from advkit.attacks.engine.run_statistics import RunStatistics
from advkit.attacks.engine.sender import sender_to
from advkit.core import checks, sample_rows
from advkit.core.hyperparameters import format_call, non_default_fields
from advkit.core.losses import Loss
from advkit.core.norms import Norm, per_sample
from advkit.core.progress import progress_bar
from advkit.core.results import (
    AttackInterrupted,
    AttackResult,
    InconclusiveWarning,
    Queries,
)
from advkit.models import DifferentiableClassifier, as_differentiable, evaluating, may_interrupt
from advkit.models.batch_dependence import warn_of_batch_statistics
from advkit.models.labels import label_indices

# A success that is not confirmed is moved out to these multiples of its perturbation: it lies on
# the boundary, and a batch of another size rounds differently. The last one is the clean input.
OUTWARD_FACTORS = (1 + 2**-10, 1 + 2**-7, 1 + 2**-4, 0)


@dataclass(frozen=True, kw_only=True, repr=False)
class BaseAttack(ABC):
    """The entry point of every attack, and what becomes of its search.

    A subclass is a frozen dataclass of hyper-parameters with a `norm`, a `_adapt_model` of the model and a
    `_search`. One with a `progress` shows a bar.
    """

    norm: Norm

    def __repr__(self) -> str:
        """The call that makes this attack, without what is at its default."""
        return format_call(type(self).__name__, non_default_fields(self))

    def __call__(
        self,
        model: object,
        x: Tensor,
        y: Tensor | None = None,
        *,
        target: Tensor | None = None,
    ) -> Tensor:
        """Adversarial inputs `(n, *features)`: `run(...).x_adv`."""
        return self.run(model, x, y, target=target).x_adv

    def run(
        self,
        model: object,
        x: Tensor,
        y: Tensor | None = None,
        *,
        target: Tensor | None = None,
    ) -> AttackResult:
        """Attack a batch.

        Works within `no_grad` and `inference_mode` too, and leaves the model, the random state and
        `x` as they were, also when it raises.

        Args:
            model: a classifier that answers what this attack asks for; an `nn.Module` with inputs
                in [0, 1] and a fitted scikit-learn estimator are wrapped.
            x: clean inputs `(n, *features)`, of a floating dtype, within the model's bounds.
            y: true labels `(n,)`, of any integer dtype, integral floats or one-hot; indices of the
                model's classes, or the estimator's own labels for a `SklearnClassifier` with
                `labels="class"`. `None` takes the model's own predictions, at the cost of a forward
                pass.
            target: labels to reach, as `y`; makes the attack targeted.

        Returns:
            What was found, sample by sample.

        Raises:
            ValueError: `x` or the labels have the wrong shape or range, the attack has no targeted
                form, the model returns NaN or infinite logits for an input, or without `y` it
                rejects one.
            TypeError: `x` is not of a floating dtype, or the model does not answer what this attack
                asks for.
            QueryBudgetExceeded: the model has a query budget, and it is spent; `result` of the
                error is what was found until then, as the model had judged it.
            ServiceError: a function behind the model raised, or did not answer what it should;
                `result` as above.
        """
        view = self._adapt_model(model)
        warn_of_batch_statistics(view)
        with self.running(view, x):
            problem = self._problem(view, x, y, target)
            if not len(problem.x):
                return _result(problem, Best.unevaluated(problem.x))
            if may_interrupt(view):
                problem.statistics.best_so_far = self._empty_record(problem)
            try:
                return _result(problem, self._verified(problem, self.search(problem)))
            except AttackInterrupted as error:
                kept = problem.statistics.best_so_far
                kept = self._empty_record(problem) if kept is None else kept
                error.result = _result(problem, self._partial_result(problem, kept))
                raise

    @contextmanager
    def running(self, view: object, x: Tensor) -> Iterator[None]:
        """The state in which an attack on the samples `x` runs."""
        n = len(x) if isinstance(x, Tensor) and x.ndim else 0  # the entry point refuses others
        numbered = sample_rows.numbered(n, total=n)
        with torch.inference_mode(False), torch.no_grad(), evaluating(view), numbered:
            yield

    def search(self, problem: Problem) -> Best | Nearest:
        """Return what the attack finds for a batch that is not empty, before it is verified."""
        show = getattr(self, "progress", False)
        total = self._total_steps(problem) if show else None
        with progress_bar(type(self).__name__, total, show) as advance:
            problem.statistics.advance = advance
            return self._search(problem)

    def _problem(
        self, model: DifferentiableClassifier, x: Tensor, y: Tensor | None, target: Tensor | None
    ) -> Problem:
        x = checks.inputs(x, model.bounds)
        statistics, rows = RunStatistics(len(x), x.device), torch.arange(len(x), device=x.device)
        statistics.sender = sender_to(model, x)
        if y is not None:
            y = label_indices("y", y, x, model)
        if target is not None:
            labels = label_indices("target", target, x, model)
        elif y is not None:
            labels = y
        else:
            labels = torch.zeros(0, dtype=torch.int64)
            if len(x):
                labels = statistics.sender(model.predict, x, rows)
            checks.no_rejections(labels)
            statistics.forward += 1
        given = [v for v in (labels, y) if v is not None and len(v)]
        max_label = max((int(v.max()) for v in given), default=0)
        goal = Goal(labels, max_label, target is not None, self._confidence)
        loss = self._ascent_loss(targeted=target is not None)
        return Problem(model, x, goal, loss, self.norm, rows, statistics, LogitScale(len(x)))

    @property
    def _confidence(self) -> float:
        """The margin in logits that a success must have."""
        return 0.0

    @abstractmethod
    def _adapt_model(self, model: object) -> DifferentiableClassifier:
        """`model` as this attack asks it; what stands in `logits` need not have gradients.

        Raises:
            TypeError: the model does not answer that.
        """

    @abstractmethod
    def _ascent_loss(self, *, targeted: bool) -> Loss:
        """The loss that the attack climbs.

        Raises:
            ValueError: it has no targeted form.
        """

    @abstractmethod
    def _search(self, problem: Problem) -> Best | Nearest:
        """Return what is found for a batch that is not empty."""

    @abstractmethod
    def _verify(self, problem: Problem, found: Best | Nearest) -> Best:
        """Evaluate once more exactly what is returned."""

    def _decision_problem(self, problem: Problem) -> Problem:
        """Return `problem` with the model's answer that decides about success."""
        return problem

    def _verified(self, problem: Problem, found: Best | Nearest) -> Best:
        """Return what is found, verified.

        Where answers depend on the rest of the batch, exactly what is returned is sent last. A
        failure that becomes the clean input again changes the batch, which is then sent once more.
        """
        best = self._verify(problem, found)
        while (sent := problem.statistics.sender.last_sent()) is not None:
            x_adv = best.x_adv
            if getattr(self, "eps", None) is None:
                x_adv = torch.where(per_sample(best.success, x_adv), x_adv, problem.x)
            if torch.equal(x_adv, sent):
                return Best(x_adv, best.violation)
            best = Best(x_adv, self._decision_problem(problem).violation(x_adv))
        return best

    def _total_steps(self, problem: Problem) -> int | None:
        """Return the most steps that the progress bar can show, `None` if unknown."""
        return None

    def _empty_record(self, problem: Problem) -> Best | Nearest:
        """Return the record of a batch before the search."""
        return Best.unevaluated(problem.x)

    def _partial_result(self, problem: Problem, kept: Best | Nearest) -> Best | Nearest:
        """Return what is left of the iterates `kept` when a query budget ends the search."""
        return kept


class GradientAttack(BaseAttack):
    """Base of the attacks on a `DifferentiableClassifier`."""

    def _adapt_model(self, model: object) -> DifferentiableClassifier:
        return as_differentiable(model, type(self).__name__)

    def _verify(self, problem: Problem, found: Best | Nearest) -> Best:
        logits = problem.logits(found.x_adv)
        checks.warn_of_probabilities(logits)
        verified = Best(found.x_adv, problem.violation_of(logits))
        if not problem.statistics.sender.whole:  # there, another batch has other answers
            _warn_of_chance(found.violation, verified.violation, problem.x.dtype)
        if isinstance(found, Nearest):
            return move_outward(problem, found, verified)
        return verified


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
        best = Best(x_adv, problem.violation(x_adv))
    return best


def _result(problem: Problem, best: Best | Nearest) -> AttackResult:
    """Return the result of the run, and warn of failures that say nothing about robustness."""
    failed, statistics = ~best.success, problem.statistics
    not_finite, no_gradient = statistics.not_finite & failed, statistics.no_gradient & failed
    no_start = statistics.no_start & failed
    untold = no_start & ~not_finite  # which is why it could not begin, and said
    if statistics.no_start_told:
        untold = torch.zeros_like(no_start)
    for inconclusive, sentence in (
        (not_finite, _NOT_FINITE),
        (no_gradient, _NO_GRADIENT),
        (untold, _NO_START),
    ):
        if inconclusive.any():
            counts = f"{int(inconclusive.sum())} of {len(inconclusive)} samples"
            which = f"(sample {checks.indices(inconclusive)})"
            checks.warn(sentence.format(counts=counts, which=which), InconclusiveWarning)
    return AttackResult(
        x_adv=best.x_adv,
        success=best.success,
        distance=problem.distance(best.x_adv),
        norm=problem.norm,
        queries=Queries(statistics.forward, statistics.backward),
        no_gradient=no_gradient,
        not_finite=not_finite,
        no_start=no_start,
    )


_NOT_FINITE = (
    "the model returned NaN or infinite logits for {counts}, which were not fooled {which}: such "
    "an answer is never a success, and the failure says nothing about their robustness; attack the "
    "model in float32 or float64"
)
_NO_GRADIENT = (
    "{counts} met a gradient of zero or NaN and were not fooled {which}: that says nothing about "
    "their robustness; try PGD with loss='margin' or an attack without gradients, Square or "
    "HopSkipJump"
)
_NO_START = (
    "the search could not begin for {counts}, which were not fooled {which}: there was no point to "
    "start from, or the queries ended before the first step. That says nothing about their "
    "robustness; give HopSkipJump init_points=, inputs with a label that counts as success, or raise "
    "its queries"
)


def _warn_of_chance(before: Tensor, after: Tensor, dtype: torch.dtype) -> None:
    """A model that answers the same input twice in different ways draws random numbers."""
    tolerance = 1e-2 if dtype in (torch.float32, torch.float64) else 1e-1
    changed = (before - after).abs() > tolerance * (1 + before.abs())
    changed &= before.isfinite()
    if changed.any():
        checks.warn(
            f"the model answered {int(changed.sum())} of {len(after)} inputs differently when "
            "asked again: it is random. Success is its last answer; attack its expectation instead",
            InconclusiveWarning,
        )
