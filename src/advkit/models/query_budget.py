"""The query budget of a model."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from advkit.core import checks
from advkit.core.results import QueryBudgetExceeded


class Reservation:
    """Samples of one call that have a place in a budget and are not answered yet.

    Attributes:
        left: how many of them are still open.
    """

    def __init__(self, samples: int) -> None:
        self.left = samples


class Budget:
    """Samples that were answered, and how many may be; threads may share it.

    A call reserves its samples before it sends them. What was not answered at the end of the call,
    because it raised or was interrupted, is given back.

    Args:
        limit: samples in all; `None` for any number.

    Raises:
        ValueError: `limit` is negative.
        TypeError: `limit` is not an int.
    """

    def __init__(self, limit: int | None) -> None:
        if limit is not None:
            checks.integer("max_queries", limit, at_least=0)
        self.limit = limit
        self.spent = 0
        # weak: an interrupt may keep a reservation from being removed, but not from going away
        self._open: weakref.WeakSet[Reservation] = weakref.WeakSet()
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple[int | None, int]:
        """Return limit and count: calls in flight are those of the original."""
        return self.limit, self.spent

    def __setstate__(self, state: tuple[int | None, int]) -> None:
        self.__init__(state[0])  # type: ignore[misc]  # as a new one, which has a lock of its own
        self.spent = state[1]

    @property
    def left(self) -> int | None:
        """Samples that may still be sent, not those in flight; `None` for any number."""
        with self._lock:
            return None if self.limit is None else self.limit - self.spent - self._reserved

    @property
    def _reserved(self) -> int:
        return sum(reservation.left for reservation in self._open)

    @contextmanager
    def reserved(self, samples: int) -> Iterator[Reservation]:
        """Keep room for the `samples` of one call, until the block ends.

        Raises:
            QueryBudgetExceeded: they do not fit.
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

    def answered(self, reservation: Reservation, samples: int) -> None:
        """Count `samples` of a reservation as answered."""
        with self._lock:
            self.spent += samples  # first: an interrupt here may count too much, never too little
            reservation.left -= samples

    def reset(self) -> None:
        """Count from zero, with the whole limit; calls in flight keep their room."""
        with self._lock:
            self.spent = 0


class Counter:
    """A number that stays exact when several threads add to it."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple[int]:
        """Return the number: a lock cannot be copied."""
        return (self.value,)

    def __setstate__(self, state: tuple[int]) -> None:
        self.__init__(*state)  # type: ignore[misc]  # as a new one, which has a lock of its own

    def add(self, more: int) -> None:
        """Add `more`."""
        with self._lock:
            self.value += more

    def reset(self) -> None:
        """Set the number to zero."""
        with self._lock:
            self.value = 0
