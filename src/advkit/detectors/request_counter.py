"""Thread-safe counts of requests, alarms and failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Totals(NamedTuple):
    """Counts of one moment."""

    requests: int
    alarms: int
    failures: int


class RequestCounter:
    """Number of inputs that were scored, of alarms among them, and of calls that failed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = self._alarms = self._failures = 0

    def hashed_attributes(self) -> dict[str, object]:
        """Return no attributes, for a hash of the guard: the counts change with every call."""
        return {}

    def totals(self) -> Totals:
        """Return all counts of the same moment."""
        with self._lock:
            return Totals(self._requests, self._alarms, self._failures)

    def add(self, requests: int, alarms: int) -> None:
        """Add scored inputs, and the alarms among them."""
        with self._lock:
            self._requests += requests
            self._alarms += alarms

    @contextmanager
    def counting_failures(self) -> Iterator[None]:
        """Count a failure if the block raises."""
        try:
            yield
        except BaseException:
            with self._lock:
                self._failures += 1
            raise
