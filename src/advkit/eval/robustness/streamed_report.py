"""Report of a running evaluation, built when it is first read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from advkit.eval.robustness.report import Report


class StreamedReport(Report):
    """A report that has not been read yet; the first read turns it into a `Report`.

    Joining the columns of all batches takes time and memory in proportion to their number. Done
    after each batch, the evaluation would be quadratic in the number of batches. Any access to an
    attribute counts as a read, which makes copies and pickles plain reports.

    Args:
        build: function that returns the report. It is called at the first read, and again only if
            it raised an error.
    """

    def __init__(self, build: Callable[[], Report]) -> None:
        object.__setattr__(self, "_build", build)  # a report is frozen

    def __getattribute__(self, name: str) -> Any:
        values = object.__getattribute__(self, "__dict__")
        build = values.get("_build")  # `None` if another thread has just built it
        if build is not None:
            values.update(vars(build()))
            object.__setattr__(self, "__class__", Report)
            values.pop("_build", None)
        return object.__getattribute__(self, name)
