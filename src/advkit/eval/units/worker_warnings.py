"""Warnings of units of work, caught in each thread of a worker."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

Caught = list[tuple[str, type[Warning]]]  # text and category of each warning
_local = threading.local()  # the list of each thread


class _Catching:
    """Number of threads that catch warnings; the filters are changed while there are any.

    `warnings.catch_warnings` alone restores the wrong filters if it is left in another order than
    it was entered, as threads do.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._changed = ExitStack()

    def begin(self) -> None:
        with self._lock:
            if not self._count:
                self._changed.enter_context(warnings.catch_warnings())
                warnings.simplefilter("always")
                warnings.showwarning = _keep
            self._count += 1

    def end(self) -> None:
        with self._lock:
            self._count -= 1
            if not self._count:
                self._changed.close()


_catching = _Catching()


@contextmanager
def caught_warnings() -> Iterator[Caught]:
    """Catch the warnings of this thread, in a process where no other code needs them."""
    found: Caught = []
    _local.found = found
    _catching.begin()
    try:
        yield found
    finally:
        _catching.end()
        _local.found = None


def _keep(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    found = getattr(_local, "found", None)
    if found is not None:
        found.append((str(message), category))
