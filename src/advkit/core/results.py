"""Results of attacks, and the exceptions and warnings that attacks raise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advkit.core.norms import Norm


@dataclass(frozen=True, eq=False)
class Queries:
    """Numbers of passes of the model for each of `n` inputs.

    Attributes:
        forward: int64 `(n,)`; forward passes that the input was part of.
        backward: int64 `(n,)`; backward passes that the input was part of.
    """

    forward: Tensor
    backward: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class AttackResult:
    """Outcome of an attack on a batch of `n` inputs.

    Attributes:
        x_adv: `(n, *features)`, within the model's bounds. For a failed sample it is the best
            iterate of a budget attack and the clean input of a minimum-norm attack.
        success: bool `(n,)`; the model's prediction for exactly `x_adv`, evaluated again after the
            search, reaches the goal.
        distance: `(n,)`; the `norm` of `x_adv - x`.
        norm: the norm of `distance`; `"l0_pixel"` for an attack in l0 with `unit="pixel"`.
        queries: forward and backward passes of each input.
        no_gradient: bool `(n,)`; the attack failed and met a gradient that was zero or not finite.
            Such a failure says nothing about robustness.
        not_finite: bool `(n,)`; the attack failed and met NaN or infinite logits, at `x_adv` or
            during the search. Such a failure says nothing about robustness. False by default.
        no_start: bool `(n,)`; the attack failed before its first step. It found no starting point,
            or its queries were used up. Such a failure says nothing about robustness. False by
            default.
        rejected: bool `(n,)`; the attack failed and the model rejected an iterate, at `x_adv` or
            during the search. The input may count as robust for this alone. False by default.
        improving: bool `(n,)`; the attack failed, and in the last tenth of its steps the margin
            shrank at least half as fast as on average. False by default, and for searches that do
            not maximize a loss step by step.
        success_lost: bool `(n,)`; the attack failed at the last iterate, which it returns, but an
            earlier iterate reached the goal. False by default.
        stage: int64 `(n,)`, of a `Cascade`, `AutoAttack` or `Suite`: number of the attack that
            succeeded, in their order from 0. It is -1 for a failure and for an input that is
            misclassified already. `None` for attacks without stages.
        prediction: int64 `(n,)`; label that the model predicts for `x_adv` of a success, an index
            of its classes, as it was evaluated after the search; -1 for a failure. `None` for
            attacks that do not tell.
    """

    x_adv: Tensor
    success: Tensor
    distance: Tensor
    norm: Norm
    queries: Queries
    no_gradient: Tensor
    not_finite: Tensor = None  # type: ignore[assignment]  # set below, for users' own attacks
    no_start: Tensor = None  # type: ignore[assignment]  # set below
    rejected: Tensor = None  # type: ignore[assignment]  # set below
    improving: Tensor = None  # type: ignore[assignment]  # set below
    success_lost: Tensor = None  # type: ignore[assignment]  # set below
    stage: Tensor | None = None
    prediction: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("not_finite", "no_start", "rejected", "improving", "success_lost"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, torch.zeros_like(self.success))


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers of a model up to the error that ended `Distillation.fit` or `Substitute.fit`.

    They are the attribute `answers` of any such error, interrupts included. If they are passed to
    `fit` as `answers`, the model is not queried for them again.

    Attributes:
        inputs: `(n, *features)`, on the CPU.
        outputs: logits `(n, classes)` of a `Distillation`, or logarithms if the teacher returns
            probabilities; labels `(n,)` of a `Substitute`.
    """

    inputs: Tensor
    outputs: Tensor


class AttackInterrupted(RuntimeError):  # noqa: N818 - it names the event
    """Error for a model that cannot be queried further; the result so far is preserved.

    Attributes:
        result: partial result of the attack that queried the model; `None` outside of attacks, and
            if the model failed before the search.
    """

    result: AttackResult | None = None


class QueryBudgetExceeded(AttackInterrupted):
    """Error for a call that exceeds a classifier's query budget; no sample of it was sent.

    Attributes:
        max_queries: number of samples that may be sent in total.
        spent: number of samples sent before, including those in flight.
        requested: number of samples of the call.
        result: partial result of the attack that made the call; `None` outside of attacks.
    """

    def __init__(self, max_queries: int, spent: int, requested: int) -> None:
        super().__init__(
            f"`max_queries` must allow {requested:,} more queries, got {max_queries - spent:,} of "
            f"{max_queries:,} left. Inside an attack, the error's `result` has the result so far."
        )
        self.max_queries = max_queries
        self.spent = spent
        self.requested = requested

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the three numbers, since the message is not enough, and the `result`."""
        return type(self), (self.max_queries, self.spent, self.requested), self.__dict__


class ServiceError(AttackInterrupted):
    """Error for a function of a `CallableClassifier` that raised or returned an invalid value.

    The error of the function, or the one about its value, is the `__cause__`.

    Attributes:
        attempts: how often the samples were sent.
        answers: answers to the first samples of the same call, before the error: int64 labels
            `(k,)`, or float64 scores or logits `(k, classes)`; `None` if there are none. After
            `Distillation.fit` and `Substitute.fit` it is an `Answers` with all answers so far.
        result: partial result of the attack that made the call; `None` outside of attacks.
    """

    def __init__(
        self, message: str, *, attempts: int = 1, answers: Tensor | Answers | None = None
    ) -> None:
        super().__init__(message)
        self.attempts = attempts
        self.answers = answers


class InconclusiveWarning(UserWarning):
    """Warning that the result of an attack says less about robustness than it seems to.

    Gradients vanished, the search could not begin, the model returned different outputs for the
    same input, or its outputs depend on the rest of the batch.
    """
