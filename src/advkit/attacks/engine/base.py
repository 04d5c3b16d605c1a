"""Base of the attacks: checks before the search, verification and result after it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import Never, Self

from advkit.attacks.engine.goal import Goal
from advkit.attacks.engine.logit_scale import LogitScale
from advkit.attacks.engine.problem import Problem
from advkit.attacks.engine.records import Best, Nearest
from advkit.attacks.engine.run_statistics import RunStatistics
from advkit.attacks.engine.sender import sender_to
from advkit.core import checks, label_checks, sample_rows
from advkit.core.boxes import warn_of_whole_box
from advkit.core.foreign_names import refuse_foreign, refuse_in_call
from advkit.core.hyperparameters import format_call, is_equal, non_default_fields
from advkit.core.losses import Loss
from advkit.core.norms import Norm, in_unit, per_sample
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

# An unconfirmed success is moved to these multiples of its perturbation, one after another. It lies
# on the decision boundary, and a batch of another size rounds differently. The last factor gives
# the clean input.
OUTWARD_FACTORS = (1 + 2**-10, 1 + 2**-7, 1 + 2**-4, 0)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class BaseAttack(ABC):
    """Base of all attacks: the entry point, the verification and the result.

    A subclass is a frozen dataclass of hyper-parameters with a `norm`. It implements `_adapt_model`
    and `_search`. A subclass with a field `progress` can show a progress bar.
    """

    norm: Norm

    def __repr__(self) -> str:
        """Return the call that creates this attack, without arguments at their defaults."""
        return format_call(type(self).__name__, non_default_fields(self))

    def __eq__(self, other: object) -> bool:
        """Return whether `other` is an attack of the same class with equal hyper-parameters.

        A dataclass would compare tensors elementwise, and fail.
        """
        if type(other) is not type(self):
            return NotImplemented
        return all(is_equal(value, vars(other)[name]) for name, value in vars(self).items())

    def __hash__(self) -> int:
        """Return a hash of the class and of its call, which is equal for equal attacks."""
        return hash(repr(self))

    def __new__(cls, *args: object, **given: object) -> Self:
        """Refuse positional arguments and unknown names, and name ours.

        Copies and pickles create the object without arguments.
        """
        refuse_foreign(cls, args, given)
        return super().__new__(cls)

    def __call__(
        self,
        model: object,
        x: Tensor,
        y: Tensor | None = None,
        *,
        target: Tensor | None = None,
        **others: Never,
    ) -> Tensor:
        """Return the adversarial inputs `(n, *features)`, the `x_adv` of `run`."""
        refuse_in_call(others)
        return self.run(model, x, y, target=target).x_adv

    def run(
        self,
        model: object,
        x: Tensor,
        y: Tensor | None = None,
        *,
        target: Tensor | None = None,
        **others: Never,
    ) -> AttackResult:
        """Attack a batch.

        The method also works inside `no_grad` and `inference_mode`. It leaves the model, the random
        state and `x` unchanged, even when it raises.

        Args:
            model: a classifier with the outputs that this attack needs. An `nn.Module` with inputs
                in [0, 1] and a fitted scikit-learn estimator are wrapped.
            x: clean inputs `(n, *features)`, of a floating dtype, within the model's bounds.
            y: true labels `(n,)`, of any integer dtype, integral floats or one-hot. They are
                indices of the model's classes, or the estimator's own labels for a
                `SklearnClassifier` with `labels="class"`. `None` uses the model's predictions, at
                the cost of a forward pass.
            target: labels to reach, in the same formats as `y`; makes the attack targeted.
            **others: none; the error for another name tells where it belongs.

        Returns:
            The adversarial inputs and the outcome of each sample.

        Raises:
            ValueError: `x` or the labels have the wrong shape or range, or the attack has no
                targeted form. Also raised if the model returns NaN or infinite logits for a clean
                input, or rejects one when `y` is `None`.
            TypeError: `x` is not of a floating dtype, the model lacks an output that this attack
                needs, or an argument has another name.
            QueryBudgetExceeded: the model's query budget is used up. The `result` of the error
                holds the outcome so far, as the model evaluated it.
            ServiceError: a function behind the model raised, or returned an invalid output. The
                `result` of the error holds the outcome so far.
        """
        refuse_in_call(others)
        adapted = self._adapt_model(model)
        warn_of_batch_statistics(adapted)
        with self.running(adapted, x):
            problem = self._problem(adapted, x, y, target)
            if not len(problem.x):
                return _result(problem, Best.unevaluated(problem.x))
            if may_interrupt(adapted):
                problem.statistics.best_so_far = self._empty_record(problem)
            try:
                return _result(problem, self._verified(problem, self.search(problem)))
            except AttackInterrupted as error:
                record = problem.statistics.best_so_far
                record = self._empty_record(problem) if record is None else record
                error.result = _result(problem, self._partial_result(problem, record))
                raise

    @contextmanager
    def running(self, model: object, x: Tensor) -> Iterator[None]:
        """Enter the state in which an attack on the samples `x` runs."""
        n = len(x) if isinstance(x, Tensor) and x.ndim else 0  # `_problem` rejects other inputs
        numbered = sample_rows.numbered(n, total=n)
        with torch.inference_mode(False), torch.no_grad(), evaluating(model), numbered:
            yield

    def search(self, problem: Problem) -> Best | Nearest:
        """Search a batch that is not empty, and return the iterates before verification."""
        show = getattr(self, "progress", False)
        total = self._total_steps(problem) if show else None
        with progress_bar(type(self).__name__, total, show) as advance:
            problem.statistics.advance = advance
            return self._search(problem)

    def _problem(
        self, model: DifferentiableClassifier, x: Tensor, y: Tensor | None, target: Tensor | None
    ) -> Problem:
        x = checks.inputs("x", x, model.bounds)
        if (eps := getattr(self, "eps", None)) is not None:
            warn_of_whole_box(eps, self._distance_norm, x, model.bounds)
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
            label_checks.no_rejections(labels)
            statistics.forward += 1
        given = [v for v in (labels, y) if v is not None and len(v)]
        max_label = max((int(v.max()) for v in given), default=0)
        goal = Goal(labels, max_label, target is not None, self._confidence)
        loss = self._ascent_loss(targeted=target is not None)
        norm, scale = self._distance_norm, LogitScale(len(x))
        return Problem(model, x, goal, loss, norm, rows, statistics, scale)

    def supports(self, model: object) -> bool:
        """Return whether `model` has the outputs that this attack needs."""
        try:
            self._adapt_model(model)
        except TypeError:
            return False
        return True

    @property
    def _distance_norm(self) -> Norm:
        """Norm of the distances, which is not `norm` for a budget in pixels."""
        return in_unit(self.norm, getattr(self, "unit", ""))

    @property
    def _confidence(self) -> float:
        """Margin in logits that a success must have."""
        return 0.0

    @abstractmethod
    def _adapt_model(self, model: object) -> DifferentiableClassifier:
        """Return `model` with the outputs of this attack as `logits`, not always differentiable.

        Raises:
            TypeError: the model lacks an output that this attack needs.
        """

    @abstractmethod
    def _ascent_loss(self, *, targeted: bool) -> Loss:
        """Return the loss that the attack maximizes.

        Raises:
            ValueError: the loss has no targeted form.
        """

    @abstractmethod
    def _search(self, problem: Problem) -> Best | Nearest:
        """Search a batch that is not empty, and return a record of its iterates."""

    @abstractmethod
    def _verify(self, problem: Problem, record: Best | Nearest) -> Best:
        """Evaluate exactly the iterates of `record` once more, which the attack returns."""

    def _decision_problem(self, problem: Problem) -> Problem:
        """Return `problem` with the model output that decides about success."""
        return problem

    def _verified(self, problem: Problem, record: Best | Nearest) -> Best:
        """Verify the iterates of the search.

        Where the model's outputs depend on the rest of the batch, the last pass evaluates exactly
        what is returned. Replacing a failure by the clean input changes the batch, which is then
        evaluated once more.
        """
        problem.statistics.verified_labels = torch.full_like(problem.rows, -1)
        best = self._verify(problem, record)
        while (sent := problem.statistics.sender.last_sent()) is not None:
            x_adv = best.x_adv
            if getattr(self, "eps", None) is None:
                x_adv = torch.where(per_sample(best.success, x_adv), x_adv, problem.x)
            if torch.equal(x_adv, sent):
                return Best(x_adv, best.violation)
            best = Best(x_adv, self._decision_problem(problem).violation(x_adv))
        return best

    def _total_steps(self, problem: Problem) -> int | None:
        """Return the maximum number of steps for the progress bar, `None` if unknown."""
        return None

    def _empty_record(self, problem: Problem) -> Best | Nearest:
        """Return the record of a batch before the search."""
        return Best.unevaluated(problem.x)

    def _partial_result(self, problem: Problem, record: Best | Nearest) -> Best | Nearest:
        """Return the part of `record` that is valid when a query budget ends the search."""
        return record


class GradientAttack(BaseAttack):
    """Base of the attacks on a `DifferentiableClassifier`."""

    def _adapt_model(self, model: object) -> DifferentiableClassifier:
        return as_differentiable(model, type(self).__name__)

    def _verify(self, problem: Problem, record: Best | Nearest) -> Best:
        logits = problem.logits(record.x_adv)
        checks.warn_of_probabilities(logits)
        verified = Best(record.x_adv, problem.violation_of(logits))
        if not problem.statistics.sender.whole:  # a whole batch has other outputs when it changes
            warn_of_random_logits(record.violation, verified.violation, problem.x.dtype)
        if isinstance(record, Nearest):
            return move_outward(problem, record, verified)
        return verified


def move_outward(problem: Problem, record: Best | Nearest, verified: Best) -> Best:
    """Move successes that a second evaluation does not confirm away from the clean inputs.

    Args:
        problem: `n` samples.
        record: iterates of the search.
        verified: the same iterates, evaluated once more.

    Returns:
        The iterates with the violations of their last evaluation.
    """
    success, delta, best = record.success, record.x_adv - problem.x, verified
    for factor in OUTWARD_FACTORS:
        unconfirmed = success & ~best.success
        if not unconfirmed.any():
            break
        moved = problem.clip(problem.x + factor * delta)
        x_adv = torch.where(per_sample(unconfirmed, moved), moved, best.x_adv)
        best = Best(x_adv, problem.violation(x_adv))
    return best


def _result(problem: Problem, best: Best | Nearest) -> AttackResult:
    """Return the result of the run, and warn of failures without information on robustness."""
    failed, statistics = ~best.success, problem.statistics
    not_finite, no_gradient = statistics.not_finite & failed, statistics.no_gradient & failed
    no_start = statistics.no_start & failed
    unreported = no_start & ~not_finite  # the warning of logits names the cause of the others
    if statistics.no_start_reported:
        unreported = torch.zeros_like(no_start)
    for inconclusive, sentence in (
        (not_finite, _NOT_FINITE),
        (no_gradient, _NO_GRADIENT),
        (unreported, _NO_START),
    ):
        if inconclusive.any():
            counts = f"{int(inconclusive.sum())} of {len(inconclusive)} samples"
            which = f"({checks.samples(inconclusive)})"
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
        rejected=statistics.rejected & failed,
        improving=statistics.improving & failed,
        success_lost=statistics.success_lost & failed,
        stage=_of_successes(statistics.stage, best.success),
        prediction=_of_successes(statistics.verified_labels, best.success),
    )


def _of_successes(values: Tensor | None, success: Tensor) -> Tensor | None:
    """Return int64 `values` `(n,)`, -1 for failures; `None` if there are none."""
    return None if values is None else values.where(success, -1)


_NOT_FINITE = (
    "The model returned NaN or infinite logits for {counts} that were not fooled {which}. Such an "
    "output is never a success, and the failure says nothing about robustness. Attack the model in "
    "float32 or float64."
)
_NO_GRADIENT = (
    "{counts} met a gradient of zero or NaN and were not fooled {which}. This failure says nothing "
    "about robustness. Try PGD with loss='margin', or an attack without gradients such as Square "
    "or HopSkipJump."
)
_NO_START = (
    "The search could not begin for {counts} that were not fooled {which}. Either no starting "
    "point was found, or the queries were used up before the first step. This failure says nothing "
    "about robustness. Pass HopSkipJump init_points=, inputs with a label that counts as success, "
    "or increase its max_queries."
)


def warn_of_random_logits(before: Tensor, after: Tensor, dtype: torch.dtype) -> None:
    """Warn if two evaluations of the same inputs have different violations `(n,)`."""
    tolerance = 1e-2 if dtype in (torch.float32, torch.float64) else 1e-1
    changed = (before - after).abs() > tolerance * (1 + before.abs())
    changed &= before.isfinite()
    if changed.any():
        checks.warn(
            f"The model returned other logits for {int(changed.sum())} of {len(after)} inputs when "
            "it was evaluated again, so it is random. The last evaluation decides about success. "
            "Attack the expectation of the model instead.",
            InconclusiveWarning,
        )
