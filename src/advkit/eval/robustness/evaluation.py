"""One run of an evaluation: inputs, workers, store and progress put together."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from advkit.core.progress import Status, status_line
from advkit.eval.evidence.provenance import Provenance
from advkit.eval.robustness.callbacks import Callback, Notifier
from advkit.eval.robustness.evaluation_recorder import EvaluationRecorder
from advkit.eval.robustness.report import Report
from advkit.eval.store.shards import Shard
from advkit.eval.store.store import Store
from advkit.eval.units.backends import Backend
from advkit.eval.units.chunks import Inputs
from advkit.eval.units.descriptions import EvaluationDescription
from advkit.eval.units.schedule import ChunkResults, Schedule
from advkit.eval.units.worker import Unit


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """One run of an evaluation.

    Attributes:
        inputs: the inputs, in chunks.
        description: description for the report on all inputs.
        backend: where units of work are computed.
        shard: the chunks that this run evaluates.
        store: where results are kept; `None` keeps none.
        provenance: what the results are computed with.
        callbacks: objects that are called after each chunk and at the end.
    """

    inputs: Inputs
    description: EvaluationDescription
    backend: Backend
    shard: Shard
    store: Store | None
    provenance: Provenance
    callbacks: Sequence[Callback]

    def reports(self, *, progress: bool) -> Iterator[Report]:
        """Yield a report on all inputs so far after each chunk.

        A shard without a chunk yields one report on no inputs. The callbacks get a chunk after its
        report was yielded, so that an error in one of them does not lose the chunk.

        Raises:
            ValueError: there are no inputs at all.
        """
        total = self.inputs.size(self.shard.holds)
        recorder = EvaluationRecorder(self._own_description(total), self.provenance)
        notifier = Notifier(self.callbacks, self.description.attacks, total)
        label = "evaluate" if self.shard.count == 1 else f"shard {self.shard}"
        with (
            status_line(total, progress, label=label) as status,
            closing(self._results(status)) as chunks,  # an error in a callback stops the workers
        ):
            for results in chunks:
                assert results.clean is not None  # a chunk is complete
                recorder.update(results.clean, results.in_order())
                yield (report := recorder.report())
                notifier.chunk(results)
        if self.inputs.total == 0:
            raise ValueError("`x` must hold at least one sample, got none.")
        recorder.warn_of_chance()
        notifier.report(report)

    def _results(self, status: Status) -> Generator[ChunkResults, None, None]:
        """Yield the results of each chunk of the shard, and show the progress."""
        shown = _Progress(status, self.description, self.inputs.count(self.shard.holds))
        attacks = len(self.description.attacks)
        schedule = Schedule(self.backend, self.store, attacks, shown.begin, shown.complete)
        for results in schedule.results(self.inputs.chunks(self.shard.holds)):
            shown.record(results)
            yield results
        if self.store is not None and self.inputs.chunk_count:
            self.store.finish(self.inputs.chunk_count)
        if not shown.chunks and self.inputs.total:
            yield from Schedule(self.backend, None, attacks).results([self.inputs.empty_chunk()])

    def _own_description(self, total: int | None) -> EvaluationDescription:
        """Return the description of the shard, which has `total` inputs."""
        if self.shard.count == 1:
            return self.description
        about = {**self.description.about, "shard": str(self.shard)}
        return replace(self.description, total=total, about=about)


class _Progress:
    """Progress of an evaluation, shown as a status.

    Args:
        status: where it is shown.
        description: the evaluation.
        chunks: number of chunks to evaluate, `None` if unknown.
    """

    def __init__(
        self, status: Status, description: EvaluationDescription, chunks: int | None
    ) -> None:
        self._status, self._attacks = status, description.attacks
        self._units = None if chunks is None else chunks * len(description.attacks)
        self._complete = self._inputs = self._robust = 0
        self._current = ""
        self._begun = False
        self.chunks = 0

    def begin(self, unit: Unit) -> None:
        """Show the attack of a unit that is about to be computed."""
        self._begun = True
        if unit.attack is not None:
            self._current = self._attacks[unit.attack].label
        self._show()

    def complete(self, unit: Unit) -> None:
        """Count a unit that is complete."""
        self._complete += unit.attack is not None

    def record(self, results: ChunkResults) -> None:
        """Show the robust accuracy with the next chunk."""
        assert results.clean is not None  # a chunk is complete
        columns = results.clean.columns
        robust = columns["prediction"] == columns["label"]
        for attack, result in zip(self._attacks, results.in_order(), strict=True):
            if not attack.minimum_norm:
                robust = robust & result.columns["robust"]
        self.chunks += 1
        self._inputs += results.size
        self._robust += int(robust.sum())
        if self._begun:  # work from the store does not count for the time left
            self._show()

    def _show(self) -> None:
        share = math.nan if not self._units else self._complete / self._units
        text = self._current
        if self._inputs and not all(attack.minimum_norm for attack in self._attacks):
            text += f", robust accuracy {self._robust / self._inputs:.1%} so far"
        self._status.update(self._inputs, share=share, text=text.removeprefix(", "))
