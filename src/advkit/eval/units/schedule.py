"""Schedule of an evaluation: units of work in flight, whose results leave in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from advkit.eval.units.backends import Backend
from advkit.eval.units.chunks import Chunk
from advkit.eval.units.unit_result import UnitResult
from advkit.eval.units.worker import Unit


class UnitStore(Protocol):
    """Results of units of work that outlive the process."""

    def get(self, unit: Unit) -> UnitResult | None:
        """Return the result of a unit, `None` if it must be computed."""
        ...

    def save(self, unit: Unit, result: UnitResult) -> None:
        """Keep the result of a unit."""
        ...


@dataclass(eq=False)
class ChunkResults:
    """Results of a chunk so far.

    Attributes:
        number: number of the chunk in the data, from 0.
        size: number of inputs.
        clean: result of the clean passes, `None` before it is known.
        attacked: results of the attacks, by their number.
    """

    number: int
    size: int
    clean: UnitResult | None = None
    attacked: dict[int, UnitResult] = field(default_factory=dict)

    def in_order(self) -> list[UnitResult]:
        """Return the results of the attacks in their order."""
        return [self.attacked[number] for number in sorted(self.attacked)]


class Schedule:
    """Units of work of an evaluation, computed by a backend and kept in a store.

    Args:
        backend: where units are computed.
        store: where results are kept; `None` keeps none.
        attacks: number of attacks.
        on_begin: called with each unit that is about to be computed.
        on_result: called after each unit, whether it was computed or found in the store.
    """

    def __init__(
        self,
        backend: Backend,
        store: UnitStore | None,
        attacks: int,
        on_begin: Callable[[Unit], None] = lambda _: None,
        on_result: Callable[[Unit], None] = lambda _: None,
    ) -> None:
        self._backend, self._store, self._attacks = backend, store, attacks
        self._on_begin, self._on_result = on_begin, on_result
        self._running: dict[Future[Any], tuple[Unit, ChunkResults]] = {}
        self._ready: deque[tuple[Unit, ChunkResults]] = deque()

    def results(self, chunks: Iterable[Chunk]) -> Iterator[ChunkResults]:
        """Yield the results of each chunk, in order.

        A chunk is read when the backend has room for a unit and no attack on an earlier chunk is
        ready, so that memory does not grow with the number of chunks.
        """
        source = iter(chunks)
        waiting: deque[ChunkResults] = deque()
        try:
            while True:
                while self._has_room() and self._begin_next(source, waiting):
                    yield from self._complete(waiting)
                if not self._running:
                    return
                self._wait()
                yield from self._complete(waiting)
        finally:
            self._stop()

    def _has_room(self) -> bool:
        return len(self._running) < self._backend.most_in_flight

    def _begin_next(self, source: Iterator[Chunk], waiting: deque[ChunkResults]) -> bool:
        """Begin an attack that is ready, or else the next chunk; return whether there was one."""
        if self._ready:
            self._begin(*self._ready.popleft())
            return True
        chunk = next(source, None)
        if chunk is None:
            return False
        waiting.append(ChunkResults(chunk.number, len(chunk)))
        self._begin(Unit(chunk), waiting[-1])
        return True

    def _complete(self, waiting: deque[ChunkResults]) -> Iterator[ChunkResults]:
        """Yield the first of the `waiting` chunks as long as it is complete."""
        while waiting and len(waiting[0].attacked) == self._attacks:
            yield waiting.popleft()

    def _begin(self, unit: Unit, results: ChunkResults) -> None:
        """Take the result of a unit from the store, or begin to compute it."""
        found = None if self._store is None else self._store.get(unit)
        if found is not None:
            self._record(unit, found, results)
            return
        self._on_begin(unit)
        future = self._backend.submit(unit)
        self._running[future] = unit, results
        if future.done():
            self._finish(future)

    def _wait(self) -> None:
        """Wait for the next units and record their results."""
        for future in wait(self._running, return_when=FIRST_COMPLETED).done:
            self._finish(future)

    def _finish(self, future: Future[Any]) -> None:
        """Keep and record the result of a unit that is complete."""
        unit, results = self._running[future]
        found = self._backend.result(future)
        if self._store is not None:
            self._store.save(unit, found)
        del self._running[future]  # an interrupt until here leaves it to `_stop`
        self._record(unit, found, results)

    def _stop(self) -> None:
        """Cancel the units in flight, and keep those that are complete after an error."""
        for future, (unit, _) in self._running.items():
            future.cancel()
            if self._store is not None and future.done() and not future.cancelled():
                with suppress(Exception):  # the error that ended the evaluation counts
                    self._store.save(unit, self._backend.result(future))
        self._running.clear()

    def _record(self, unit: Unit, found: UnitResult, results: ChunkResults) -> None:
        """Record a result; after the clean passes of a chunk the attacks on it are ready."""
        self._on_result(unit)
        if unit.attack is not None:
            results.attacked[unit.attack] = found
            return
        results.clean = found
        units = (Unit(unit.chunk, attack, found) for attack in range(self._attacks))
        self._ready.extend((each, results) for each in units)
