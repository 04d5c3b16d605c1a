"""Result of a gate: a condition that a report must meet."""

from __future__ import annotations

from typing import Any, NamedTuple


class Gate(NamedTuple):
    """A condition that a report must meet, and whether it does.

    Attributes:
        name: the condition, such as `"linf 0.1 at least 45 %"`.
        budget: the budget that it is about, such as `"linf 0.1"`; empty for the whole report.
        passed: whether the report meets it.
        message: sentence with the figures, which follows a colon and begins in lower case.
    """

    name: str
    budget: str
    passed: bool
    message: str

    def __str__(self) -> str:
        return f"{'PASSED' if self.passed else 'FAILED'}  {self.name}: {self.message}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return self._asdict()
