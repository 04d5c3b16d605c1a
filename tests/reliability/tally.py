"""A count of trials and of those that held, for the promises of `docs/reliability.md`."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Tally:
    """Trials of one promise, in any number of threads.

    Args:
        promise: its name in the table of `docs/reliability.md`.
    """

    def __init__(self, promise: str) -> None:
        self.promise = promise
        self.tried = 0
        self.broken: list[str] = []
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """Number of trials in which the promise held."""
        return self.tried - len(self.broken)

    @contextmanager
    def trial(self, name: object) -> Iterator[None]:
        """Count one trial; it is broken if the block raises, whatever it raises."""
        with self._lock:
            self.tried += 1
        try:
            yield
        except BaseException as error:  # noqa: BLE001 - a MemoryError breaks a promise too
            self.broken.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")

    def check(self) -> None:
        """Raise unless trials were made and all held."""
        assert self.tried, f"{self.promise}: nothing was tried"
        some = "\n".join(self.broken[:10])
        assert not self.broken, f"{self.promise}: held {self.held} of {self.tried}\n{some}"
