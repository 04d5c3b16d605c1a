"""Thread-safe counts of requests and alarms."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class RequestCounter:
    """Number of inputs that were scored and number of alarms among them, both from zero."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the block of `adding` may read the counts
        self._requests = self._alarms = 0

    def counts(self) -> dict[str, int]:
        """Return `requests` and `alarms` of the same moment, by name."""
        with self._lock:
            return {"requests": self._requests, "alarms": self._alarms}

    @contextmanager
    def adding(self, requests: int, alarms: int) -> Iterator[None]:
        """Add to the counts and block other threads until the block ends."""
        with self._lock:
            self._requests += requests
            self._alarms += alarms
            yield
