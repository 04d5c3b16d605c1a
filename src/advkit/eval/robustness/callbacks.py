"""Callbacks of an evaluation: what trackers and other code are told after each chunk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from advkit.eval.accuracy import Rate
from advkit.eval.robustness.attack_recorder import AttackRecorder
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.report import Report
from advkit.eval.robustness.worst_case import Budget, numbered_budgets, robust_within
from advkit.eval.units.descriptions import AttackDescription
from advkit.eval.units.unit_result import UnitResult


@dataclass(frozen=True, kw_only=True)
class ChunkRecord:
    """Results of an evaluation so far, after one chunk of inputs.

    Attributes:
        chunk: number of chunks so far.
        inputs: number of inputs so far.
        total: number of inputs to evaluate, `None` if unknown.
        clean_accuracy: share of the inputs so far that are labeled correctly before any attack.
        robust_accuracy: worst case over all attacks on the inputs so far, by budget as in
            `Report.worst_cases`.
        forward: forward passes of all attacks so far, over all inputs.
        backward: backward passes of all attacks so far.
        seconds: time of all attacks so far.
    """

    chunk: int
    inputs: int
    total: int | None
    clean_accuracy: Rate
    robust_accuracy: Mapping[str, Rate]
    forward: int
    backward: int
    seconds: float


class CallbackLike(Protocol):
    """An object with the methods of a `Callback`."""

    def on_chunk(self, record: ChunkRecord, /) -> None:
        """Receive the results so far."""

    def on_report(self, report: Report, /) -> None:
        """Receive the report."""


class Callback:
    """Base class of callbacks, whose methods do nothing; override those you need.

    `evaluate(..., callbacks=[...])` calls them in its own process, also with an executor. Any
    object with both methods is a callback. Results do not depend on callbacks.

    Example:
        >>> import torch
        >>> from advkit import attacks, eval
        >>> class Prints(eval.Callback):
        ...     def on_chunk(self, record):
        ...         print(record.inputs, "of", record.total)
        >>> net, x = torch.nn.Linear(4, 3), torch.rand(6, 4)
        >>> report = eval.evaluate(
        ...     net, x, net(x).argmax(1), attacks=[attacks.FGSM(eps=0.9)], batch_size=3,
        ...     callbacks=[Prints()],
        ... )
        3 of 6
        6 of 6
    """

    def on_chunk(self, record: ChunkRecord) -> None:
        """Receive the results so far, after each chunk in the order of the inputs.

        Without `store` and `executor` a chunk is a batch. Chunks whose results a store holds are
        among them.
        """

    def on_report(self, report: Report) -> None:
        """Receive the report on all inputs, once at the end.

        After an error or an interrupt it is not called.
        """


def check_callbacks(callbacks: object) -> None:
    """Raise unless `callbacks` is a sequence of callbacks."""
    if not isinstance(callbacks, Sequence) or isinstance(callbacks, str):
        raise TypeError(f"`callbacks` must be a list of callbacks, got {type(callbacks).__name__}.")
    for callback in callbacks:
        for name in ("on_chunk", "on_report"):
            if isinstance(callback, type) or not callable(getattr(callback, name, None)):
                raise TypeError(
                    f"`callbacks` must be objects with the methods on_chunk and on_report, got "
                    f"{callback!r}. Derive its class from advkit.eval.Callback, and create an "
                    "object of it."
                )


class RunningResults:
    """Results so far, from those of one chunk after another.

    The time for a chunk does not depend on the number of chunks before it.

    Args:
        attacks: descriptions of the attacks.
        total: number of inputs to evaluate, `None` if unknown.
    """

    def __init__(self, attacks: Sequence[AttackDescription], total: int | None) -> None:
        self._attacks, self._total = attacks, total
        self._chunks = self._inputs = self._clean = self._forward = self._backward = 0
        self._robust = [0] * len(attacks)
        self._budgets = [""] * len(attacks)
        self._radii = [hashlib.sha256() for _ in attacks]
        self._seconds = 0.0

    def update(self, clean: UnitResult, attacked: Sequence[UnitResult]) -> ChunkRecord:
        """Add the results of the next chunk, and return all so far."""
        correct = clean.columns["label"] == clean.columns["prediction"]
        outcomes = [_outcome(*pair) for pair in zip(self._attacks, attacked, strict=True)]
        self._chunks += 1
        self._inputs += len(correct)
        self._clean += int(correct.sum())
        self._add_robust(correct, outcomes)
        for outcome in outcomes:
            self._forward += int(outcome.forward.sum())
            self._backward += int(outcome.backward.sum())
            self._seconds += outcome.seconds
        return self._record()

    def _add_robust(self, correct: Tensor, outcomes: Sequence[AttackOutcome]) -> None:
        """Count the inputs that withstand all attacks within the budget of each attack."""
        for number, outcome in enumerate(outcomes):
            budget = Budget(outcome.norm, outcome.radius)
            self._robust[number] += int(robust_within(budget, correct, outcomes).sum())
            self._budgets[number] = outcome.budget
            if outcome.eps is None:
                self._radii[number].update(outcome.radius.numpy().tobytes())

    def _rates(self) -> dict[str, Rate]:
        """Return the worst case by budget.

        Budgets that are equal as text are one with the greater radius, which fewer inputs
        withstand.
        """
        radii = (each.digest() for each in self._radii)
        texts = numbered_budgets(zip(self._budgets, radii, strict=True))
        counts: dict[str, int] = {}
        for text, count in zip(texts, self._robust, strict=True):
            if text:
                counts[text] = min(count, counts.get(text, count))
        return {text: Rate(count, self._inputs) for text, count in counts.items()}

    def _record(self) -> ChunkRecord:
        return ChunkRecord(
            chunk=self._chunks,
            inputs=self._inputs,
            total=self._total,
            clean_accuracy=Rate(self._clean, self._inputs),
            robust_accuracy=self._rates(),
            forward=self._forward,
            backward=self._backward,
            seconds=self._seconds,
        )


def _outcome(description: AttackDescription, result: UnitResult) -> AttackOutcome:
    """Return the outcome of an attack on one chunk."""
    recorder = AttackRecorder(description)
    recorder.update(result)
    return recorder.compute()
