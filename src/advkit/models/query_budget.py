"""The query budget of a model."""

from __future__ import annotations

from advkit.core import checks
from advkit.core.results import QueryBudgetExceeded


class Budget:
    """Samples that were answered, and how many may be.

    Args:
        limit: samples in all; `None` for any number.

    Raises:
        ValueError: `limit` is negative.
        TypeError: `limit` is no int.
    """

    def __init__(self, limit: int | None) -> None:
        if limit is not None:
            checks.whole("budget", limit, at_least=0)
        self.limit = limit
        self.spent = 0

    @property
    def left(self) -> int | None:
        """Samples that may still be sent; `None` for any number."""
        return None if self.limit is None else self.limit - self.spent

    def admit(self, wanted: int) -> None:
        """Raise `QueryBudgetExceeded` unless `wanted` more samples fit."""
        if self.limit is not None and self.spent + wanted > self.limit:
            raise QueryBudgetExceeded(self.limit, self.spent, wanted)
