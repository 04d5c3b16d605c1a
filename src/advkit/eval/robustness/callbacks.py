"""Callbacks of an evaluation: objects that follow it chunk by chunk, such as trackers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from advkit.eval.accuracy import Rate
from advkit.eval.robustness.report import Report
from advkit.eval.robustness.running_rates import RunningRates
from advkit.eval.units.descriptions import AttackDescription
from advkit.eval.units.schedule import ChunkResults


@dataclass(frozen=True, kw_only=True)
class ChunkRecord:
    """State of an evaluation after a chunk.

    Attributes:
        chunk: number of the chunk in the data, from 0. A shard has every n-th chunk.
        chunk_inputs: number of inputs of the chunk, at least 1.
        inputs: number of inputs evaluated so far, this chunk included.
        total: number of inputs to evaluate, `None` if unknown; those of the shard for a shard.
        clean_accuracy: share of `inputs` that are labeled correctly before any attack.
        worst_cases: robust accuracy under all attacks within each budget, a share of `inputs`, by
            budget as text, such as "linf 0.1": see `Report.worst_cases`.
        forward: forward passes of all attacks so far; a batch of k inputs counts k.
        backward: backward passes of all attacks so far, counted in the same way.
        seconds: time since the evaluation began in this process. Results from a store take
            almost none.
    """

    chunk: int
    chunk_inputs: int
    inputs: int
    total: int | None
    clean_accuracy: Rate
    worst_cases: Mapping[str, Rate]
    forward: int
    backward: int
    seconds: float


class Callback:
    """Base class of callbacks; override one method or both.

    Any other object with the two methods is accepted as well. They are called in the process that
    called `evaluate`, in the order of the chunks, whatever the executor. The rates of the last
    chunk are those of the report.

    - Without `store` and `executor` a chunk is a batch. Chunks without an input are left out.
    - A resumed evaluation also calls `on_chunk` for the chunks that are in the store, so that a
      tracker gets the whole curve.
    - A shard has the chunks and the report of the shard.
    - After an error or an interrupt `on_report` is not called.
    - An error in a callback ends the evaluation. From `evaluate`, its attribute `report` holds the
      report on all chunks so far, that of this call included; `evaluate_stream` has yielded that
      report before. A store keeps its units.

    Example:
        >>> import torch
        >>> from advkit import attacks, eval
        >>> class Print(eval.Callback):
        ...     def on_chunk(self, record):
        ...         print(f"{record.inputs} of {record.total} inputs")
        ...     def on_report(self, report):
        ...         print(f"{report.worst_case.total} inputs in the report")
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
        >>> _ = eval.evaluate(
        ...     net, x, y, attacks=[attacks.FGSM(eps=0.1)], batch_size=3, callbacks=[Print()]
        ... )
        3 of 5 inputs
        5 of 5 inputs
        5 inputs in the report
    """

    def on_chunk(self, record: ChunkRecord) -> None:
        """Handle the state of the evaluation after a chunk."""

    def on_report(self, report: Report) -> None:
        """Handle the report of an evaluation that is complete."""


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raise unless `callbacks` is a list of objects with the methods of `Callback`."""
    if not (isinstance(callbacks, Sequence) and all(map(_is_callback, callbacks))):
        raise TypeError(
            "`callbacks` must be a list of objects with the methods on_chunk(record) and "
            f"on_report(report), got {callbacks!r}. Derive a class of your own from "
            "`advkit.eval.Callback`."
        )


def _is_callback(value: object) -> bool:
    methods = (getattr(value, name, None) for name in ("on_chunk", "on_report"))
    return not isinstance(value, type) and all(map(callable, methods))


class Notifier:
    """Calls of the callbacks of one evaluation; without callbacks it computes nothing.

    Args:
        callbacks: the callbacks.
        attacks: descriptions of the attacks.
        total: number of inputs to evaluate, `None` if unknown.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback],
        attacks: Sequence[AttackDescription],
        total: int | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._callbacks, self._total, self._clock = callbacks, total, clock
        self._rates = RunningRates(attacks)
        self._start = clock()

    def chunk(self, results: ChunkResults) -> None:
        """Call `on_chunk` after the next chunk, unless it has no inputs."""
        if not (self._callbacks and results.size):
            return
        assert results.clean is not None  # a chunk is complete
        self._rates.update(results.clean, results.in_order())
        record = ChunkRecord(
            chunk=results.number,
            chunk_inputs=results.size,
            inputs=self._rates.inputs,
            total=self._total,
            clean_accuracy=self._rates.clean_accuracy,
            worst_cases=self._rates.worst_cases,
            forward=self._rates.forward,
            backward=self._rates.backward,
            seconds=self._clock() - self._start,
        )
        for callback in self._callbacks:
            callback.on_chunk(record)

    def report(self, report: Report) -> None:
        """Call `on_report` with the complete report."""
        for callback in self._callbacks:
            callback.on_report(report)
