"""Result of one unit of work: the clean passes of a chunk, or one attack on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from advkit.eval.units.examples import Examples


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitResult:
    """Result of one unit of work on `n` inputs.

    Attributes:
        columns: tensors `(n,)` or `(rows, n)` on the CPU, by name.
        facts: plain values for JSON about the unit, by name.
        examples: a few adversarial examples for pictures, `None` without one.
    """

    columns: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)
    examples: Examples | None = None


def noise_column(number: int) -> str:
    """Return the name of the column of inputs that withstand random noise of a budget."""
    return f"noise {number}"
