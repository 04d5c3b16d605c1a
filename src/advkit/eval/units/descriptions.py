"""Descriptions of an evaluation and its attacks for a report, apart from the results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any

from advkit.core.attack_options import measured_norm
from advkit.core.hyperparameters import (
    all_fields,
    format_call,
    from_plain,
    non_default_fields,
    to_plain,
)
from advkit.core.norms import Norm

_TYPED = ("settings", "parameters")  # fields whose values JSON cannot hold as they are


@dataclass(frozen=True, kw_only=True)
class AttackDescription:
    """Description of an attack for a report, apart from its outcome.

    Attributes:
        name: name of the attack.
        settings: hyperparameters that differ from their defaults.
        parameters: all hyperparameters.
        norm: norm of its distances, empty if only its results tell it.
        minimum_norm: true if the attack has no budget.
        eps: the budget in input units; `None` for a minimum-norm attack, and for a budget attack
            with one budget for each sample.
    """

    name: str
    settings: dict[str, object]
    parameters: dict[str, object]
    norm: str
    minimum_norm: bool
    eps: float | None

    @property
    def label(self) -> str:
        """Call that creates the attack."""
        return format_call(self.name, self.settings)

    @staticmethod
    def of(attack: Any) -> AttackDescription:
        """Describe `attack`."""
        eps = getattr(attack, "eps", None)
        return AttackDescription(
            name=type(attack).__name__,
            settings=non_default_fields(attack),
            parameters=all_fields(attack),
            norm=measured_norm(attack),
            minimum_norm=eps is None,
            eps=float(eps) if isinstance(eps, Real) else None,
        )

    def to_plain(self) -> dict[str, Any]:
        """Return plain values for JSON, from which `from_plain` makes an equal description."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, **{name: to_plain(values[name]) for name in _TYPED}}

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> AttackDescription:
        """Return the description that `to_plain` was called on."""
        values = {field.name: plain[field.name] for field in fields(AttackDescription)}
        return AttackDescription(**{**values, **{n: from_plain(plain[n]) for n in _TYPED}})


@dataclass(frozen=True, kw_only=True)
class EvaluationDescription:
    """Description of an evaluation for its report, apart from its results.

    Attributes:
        attacks: descriptions of the attacks.
        budgets: norm and `eps` of each budget that random noise is drawn for.
        total: number of inputs, `None` if unknown.
        about: further facts for the reader, by name.
        class_names: name of each class; empty if they are unknown.
    """

    attacks: tuple[AttackDescription, ...]
    budgets: tuple[tuple[Norm, float], ...]
    total: int | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
