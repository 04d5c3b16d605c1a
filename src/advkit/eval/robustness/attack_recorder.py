"""Recorder of one attack on a data set, unit by unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

from torch import Tensor

from advkit.core import checks
from advkit.core.attack_options import check_length
from advkit.core.batch_recorder import BatchRecorder
from advkit.core.protocols import Attack
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.units.descriptions import AttackDescription
from advkit.eval.units.examples import Examples
from advkit.eval.units.unit_result import UnitResult


def check_attacks(attacks: Sequence[Attack], total: int | None) -> None:
    """Raise unless `attacks` is a list of attacks for `total` samples, `None` for any number."""
    if not (isinstance(attacks, Sequence) and all(map(checks.is_attack, attacks))):
        raise TypeError(f"`attacks` must be a list of attacks, got {attacks!r}.")
    if not attacks:
        raise ValueError("`attacks` must hold at least one attack, got none.")
    for attack in attacks:
        check_length(attack, total)


class AttackRecorder:
    """Outcome of one attack so far, unit by unit."""

    def __init__(self, description: AttackDescription) -> None:
        self._description = description
        self._columns = BatchRecorder()
        self._seconds = 0.0
        self._examples: Examples | None = None

    def update(self, result: UnitResult) -> None:
        """Record the result of the attack on the next samples."""
        self._columns.update({**result.columns, "input_seconds": _input_seconds(result)})
        self._seconds += result.facts["seconds"]
        self._description = with_norm(self._description, result)
        if result.examples is not None:
            parts = [self._examples, result.examples]
            self._examples = Examples.nearest([part for part in parts if part is not None])

    def outcome_so_far(self) -> Callable[[], AttackOutcome]:
        """Return a function that builds the outcome of the units so far, at any later time."""
        units, seconds = len(self._columns), self._seconds
        return partial(self._outcome, units, seconds, self._description, self._examples)

    def compute(self) -> AttackOutcome:
        """Return the outcome of the attack on all samples so far."""
        return self.outcome_so_far()()

    def _outcome(
        self,
        units: int,
        seconds: float,
        description: AttackDescription,
        examples: Examples | None,
    ) -> AttackOutcome:
        """Return the outcome of the attack in the first `units`."""
        columns = self._columns.compute(units)
        return outcome_of(description, columns, seconds, examples)


def with_norm(description: AttackDescription, result: UnitResult) -> AttackDescription:
    """Return a description with the norm of a result, which is empty if nothing was attacked."""
    return replace(description, norm=result.facts["norm"] or description.norm)


def outcome_of(
    description: AttackDescription,
    columns: Mapping[str, Any],
    seconds: float,
    examples: Examples | None = None,
) -> AttackOutcome:
    """Return the outcome of an attack from the columns `(n,)` of its inputs."""
    described = {field.name: getattr(description, field.name) for field in fields(description)}
    return AttackOutcome(**described, **columns, seconds=seconds, examples=examples)


def _input_seconds(result: UnitResult) -> Tensor:
    """Return the time of a unit divided by its attacked inputs, float64 `(n,)`."""
    attacked = result.columns["forward"] > 0
    share: float = result.facts["seconds"] / max(1, int(attacked.sum()))
    return attacked.double() * share
