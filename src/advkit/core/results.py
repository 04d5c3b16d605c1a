"""Results of attacks, and what they raise and warn of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advkit.core.norms import Norm


@dataclass(frozen=True, eq=False)
class Queries:
    """Samples sent through the model for each of `n` inputs.

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
        x_adv: `(n, *features)`, within the model's bounds. A failed sample holds the best try of a
            budget attack and the clean input of a minimum-norm attack.
        success: bool `(n,)`; whether the model's answer to exactly `x_adv`, asked once more after
            the search, reaches the goal.
        distance: `(n,)`; the `norm` of `x_adv - x`.
        norm: what `distance` is measured in.
        queries: samples sent forward and backward.
        no_gradient: bool `(n,)`; the attack failed and met a gradient that was zero or not finite:
            such a failure says nothing about robustness.
        not_finite: bool `(n,)`; the attack failed and met NaN or infinite logits, at `x_adv` or on
            the way: such a failure says nothing about robustness either. Left out, it is false.
        no_start: bool `(n,)`; the attack failed without having begun: it found no point to start
            from, or its queries ended before the first step. Such a failure says nothing about
            robustness either. Left out, it is false.
    """

    x_adv: Tensor
    success: Tensor
    distance: Tensor
    norm: Norm
    queries: Queries
    no_gradient: Tensor
    not_finite: Tensor = None  # type: ignore[assignment]  # set below, for attacks of users
    no_start: Tensor = None  # type: ignore[assignment]  # set below

    def __post_init__(self) -> None:
        for name in ("not_finite", "no_start"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, torch.zeros_like(self.success))


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers of a model up to the error that ended `Distillation.fit` or `Substitute.fit`.

    It is the attribute `answers` of the error, whatever its kind, an interrupt included. Passed to
    `fit` as `answers`, it is not asked for again.

    Attributes:
        inputs: `(n, *features)`, on the CPU.
        outputs: logits `(n, classes)` of a `Distillation`, logarithms where the teacher gives
            probabilities; labels `(n,)` of a `Substitute`.
    """

    inputs: Tensor
    outputs: Tensor


class AttackInterrupted(RuntimeError):  # noqa: N818 - what happened, as a user says it
    """A model cannot go on answering. What was found until then is not lost.

    Attributes:
        result: what the attack that queried the model had found until then; `None` outside of
            attacks, and where the model failed before the search.
    """

    result: AttackResult | None = None


class QueryBudgetExceeded(AttackInterrupted):
    """A call that a classifier's query budget has no room for. Nothing of it was sent.

    Attributes:
        max_queries: samples that may be sent in all.
        spent: samples that were sent before, those in flight included.
        wanted: samples of the call.
        result: what the attack that made the call had found until then; `None` outside of attacks.
    """

    def __init__(self, max_queries: int, spent: int, wanted: int) -> None:
        super().__init__(
            f"the query budget of {max_queries:,} samples has {max_queries - spent:,} left, "
            f"and {wanted:,} more were asked for; what was found so far is in the error's .result"
        )
        self.max_queries = max_queries
        self.spent = spent
        self.wanted = wanted

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its numbers, since the message alone does not make it; `result` goes along."""
        return type(self), (self.max_queries, self.spent, self.wanted), self.__dict__


class ServiceError(AttackInterrupted):
    """A function behind a `CallableClassifier` raised, or did not answer what it should.

    The error of the function, or what is wrong with its answer, is the `__cause__`.

    Attributes:
        attempts: how often the samples were sent.
        answers: what the same call had been answered before, for its first samples: int64 labels
            `(k,)`, or float64 scores or logits `(k, classes)`; `None` for nothing. After
            `Distillation.fit` and `Substitute.fit` it is an `Answers` with all that was answered.
        result: what the attack that made the call had found until then; `None` outside of attacks.
    """

    def __init__(
        self, message: str, *, attempts: int = 1, answers: Tensor | Answers | None = None
    ) -> None:
        super().__init__(message)
        self.attempts = attempts
        self.answers = answers


class InconclusiveWarning(UserWarning):
    """What an attack found says less of robustness than it seems.

    Gradients vanished, the search could not begin, the model answered the same input twice in
    different ways, or its answers depend on the rest of the batch.
    """
