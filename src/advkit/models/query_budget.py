"""Query budgets of models."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from advkit.core import checks
from advkit.core.results import QueryBudgetExceeded


class Reservation:
    """Samples of one call that are reserved in a budget and have no outputs yet.

    Attributes:
        remaining: number of samples without outputs.
    """

    def __init__(self, samples: int) -> None:
        self.remaining = samples


class Budget:
    """Count of the samples that a model was queried with, and their limit. Threads may share it.

    A call reserves its samples before it sends them. Samples without outputs at the end of the
    call, because it raised or was interrupted, are released.

    Args:
        limit: maximum number of samples in total; `None` for no limit.

    Raises:
        ValueError: `limit` is negative.
        TypeError: `limit` is not an int.
    """

    def __init__(self, limit: int | None) -> None:
        if limit is not None:
            checks.integer("max_queries", limit, at_least=0)
        self.limit = limit
        self.spent = 0
        # Weak: an interrupt may prevent the removal of a reservation, but not its collection.
        self._open: weakref.WeakSet[Reservation] = weakref.WeakSet()
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple[int | None, int]:
        """Return limit and count. Calls in flight belong to the original, not to its copies."""
        return self.limit, self.spent

    def __setstate__(self, state: tuple[int | None, int]) -> None:
        self.__init__(state[0])  # type: ignore[misc]  # as a new budget, with its own lock
        self.spent = state[1]

    def hashed_attributes(self) -> dict[str, object]:
        """Return the limit, for a hash of the model; the count changes with every call."""
        return {"limit": self.limit}

    @property
    def remaining(self) -> int | None:
        """Number of samples that may still be sent, minus those in flight; `None` for no limit."""
        with self._lock:
            return None if self.limit is None else self.limit - self.spent - self._reserved

    @property
    def _reserved(self) -> int:
        return sum(reservation.remaining for reservation in self._open)

    @contextmanager
    def reserve(self, samples: int) -> Iterator[Reservation]:
        """Reserve the `samples` of one call until the block ends.

        Raises:
            QueryBudgetExceeded: they exceed the remaining budget.
        """
        reservation = Reservation(samples)
        try:
            with self._lock:
                sent = self.spent + self._reserved
                if self.limit is not None and sent + samples > self.limit:
                    raise QueryBudgetExceeded(self.limit, sent, samples)
                self._open.add(reservation)
            yield reservation
        finally:
            with self._lock:
                self._open.discard(reservation)

    def charge(self, reservation: Reservation, samples: int) -> None:
        """Count `samples` of a reservation as spent."""
        with self._lock:
            self.spent += samples  # first: an interrupt here may count too much, never too little
            reservation.remaining -= samples

    def reset(self) -> None:
        """Set the count to zero and restore the whole limit; calls in flight stay reserved."""
        with self._lock:
            self.spent = 0


class Counter:
    """Count that stays exact when several threads add to it."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple[int]:
        """Return the count only, since a lock cannot be copied."""
        return (self.value,)

    def __setstate__(self, state: tuple[int]) -> None:
        self.__init__(*state)  # type: ignore[misc]  # as a new counter, with its own lock

    def hashed_attributes(self) -> dict[str, object]:
        """Return no attributes, for a hash of the model: the count changes with every call."""
        return {}

    def add(self, amount: int) -> None:
        """Add `amount` to the count."""
        with self._lock:
            self.value += amount

    def reset(self) -> None:
        """Set the count to zero."""
        with self._lock:
            self.value = 0
