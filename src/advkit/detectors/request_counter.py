"""Counts of requests and alarms that stay exact when several threads add to them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class RequestCounter:
    """Number of inputs that were judged, and of alarms among them, both from zero."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # what runs in the block of `adding` may read the counts
        self._requests = self._alarms = 0

    def counts(self) -> dict[str, int]:
        """Return `requests` and `alarms` of one moment, by name."""
        with self._lock:
            return {"requests": self._requests, "alarms": self._alarms}

    @contextmanager
    def adding(self, requests: int, alarms: int) -> Iterator[None]:
        """Add to the counts; other threads wait until the block has ended."""
        with self._lock:
            self._requests += requests
            self._alarms += alarms
            yield
