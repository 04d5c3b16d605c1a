"""Base class of trackers: callbacks that log an evaluation to a run of another package."""

from __future__ import annotations

import atexit
import re
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from advkit.core.extras import require
from advkit.eval import Callback, ChunkRecord, Report
from advkit.eval.page.render import NEEDED
from advkit.integrations.metrics import chunk_metrics, report_metrics, report_params, report_tags

Value = TypeVar("Value")
_PREFIX = re.compile(r"[A-Za-z0-9_.\-/]{0,60}")


class Run(Protocol):
    """A run of another package that an evaluation is logged to."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics by name at a number of inputs."""
        ...

    def log_facts(self, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Log parameters and tags by name."""
        ...

    def log_report(self, report: Report) -> None:
        """Log a report as a whole."""
        ...

    def finish(self, *, failed: bool) -> None:
        """End the run, unless it belongs to the caller."""
        ...


class Tracker(Callback, ABC):
    """A callback that logs each evaluation to one run, chunk by chunk.

    The run begins with the first chunk, or with a report that comes without chunks. It ends with
    the report. If an evaluation ends without a report, its run ends as failed when the tracker gets
    another evaluation, is deleted, or Python exits. Only a process that is killed leaves it open.

    Args:
        prefix: text before all names, which keeps several evaluations in one run apart.

    Raises:
        ValueError: `prefix` has characters that not all trackers accept.
    """

    def __init__(self, prefix: str = "") -> None:
        if not (isinstance(prefix, str) and _PREFIX.fullmatch(prefix)):
            raise ValueError(
                "`prefix` must have at most 60 characters, ASCII letters, digits, and '_', '-', "
                f"'.' and '/', got {prefix!r}."
            )
        self._prefix = prefix
        self._run: Run | None = None
        self._fail: weakref.finalize[Any, Any] | None = None  # ends the run as failed, once
        self._logged: dict[str, float] = {}  # metrics of the last chunk

    @abstractmethod
    def _begin(self) -> Run:
        """Begin a run, or return the active run of the caller."""

    def on_chunk(self, record: ChunkRecord) -> None:
        """Log the metrics after a chunk, at the number of inputs so far."""
        is_first = record.inputs == record.chunk_inputs
        if is_first and self._fail is not None:  # the evaluation before it has no report
            self._fail()
            self._forget()
        self._logged = chunk_metrics(record)
        self._open_run().log_metrics(self._named(self._logged), record.inputs)

    def on_report(self, report: Report) -> None:
        """Log a complete evaluation and end the run; any report may be passed.

        Metrics that the last chunk has logged already are left out.
        """
        run, found = self._open_run(), report_metrics(report)
        new = {name: value for name, value in found.items() if self._logged.get(name) != value}
        run.log_metrics(self._named(new), len(report.clean))
        run.log_facts(self._named(report_params(report)), self._named(report_tags(report)))
        run.log_report(report)
        self._forget()
        run.finish(failed=False)

    def _open_run(self) -> Run:
        if self._run is None:
            self._run = self._begin()
            self._fail = weakref.finalize(self, self._run.finish, failed=True)
            atexit.register(self._fail)  # now, to precede the package, which ends its runs too
        return self._run

    def _forget(self) -> None:
        """Leave the run to others, so that the next evaluation begins a new one."""
        if self._fail is not None:
            self._fail.detach()
            atexit.unregister(self._fail)
        self._run, self._fail, self._logged = None, None, {}

    def _named(self, values: Mapping[str, Value]) -> dict[str, Value]:
        return {self._prefix + name: value for name, value in values.items()}


def require_report(needed_by: str) -> None:
    """Raise unless the packages that save a report are installed.

    Raises:
        ImportError: jinja2 or Pillow is missing; the message names the extra that installs it.
    """
    for module in NEEDED:
        require(module, extra="report", needed_by=needed_by)
