"""Tracker for TensorBoard."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advkit.core.extras import require
from advkit.eval import Report
from advkit.integrations.tracker import Run, Tracker


class TensorBoard(Tracker):
    """A tracker that writes each evaluation to a file of events for TensorBoard.

    Metrics are written after each chunk, with the number of inputs so far as the step, and can be
    read while the evaluation runs. The report follows at the end as text, with tables of its
    parameters and tags: see `docs/trackers.md` for their names. Use one folder for each evaluation;
    TensorBoard shows the folders inside `logdir` as runs.

    Args:
        folder: folder of the run, created if missing.

    Raises:
        TypeError: `folder` is not a path.
        ImportError: tensorboard is missing.

    Example:
        >>> from advkit import attacks, eval
        >>> from advkit.integrations.tensorboard import TensorBoard
        >>> def tracked(net, x, y):
        ...     suite = [attacks.Suite(eps=8 / 255)]
        ...     tracker = TensorBoard("runs/baseline")
        ...     return eval.evaluate(net, x, y, attacks=suite, callbacks=[tracker])
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        if not isinstance(folder, (str, Path)) or not str(folder):
            raise TypeError(f"`folder` must be the path of a folder, got {folder!r}.")
        require("tensorboard", extra="tensorboard", needed_by="TensorBoard")
        self._folder = Path(folder)

    def _begin(self) -> Run:
        from torch.utils.tensorboard import SummaryWriter

        return _EventFile(SummaryWriter(str(self._folder)))


@dataclass(frozen=True)
class _EventFile:
    """A file of events.

    Attributes:
        writer: the `SummaryWriter` of the file.
    """

    writer: Any

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write metrics by name at a number of inputs."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def log_facts(self, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Write parameters and tags as tables."""
        self.writer.add_text("parameters", _table(params))
        self.writer.add_text("tags", _table(tags))

    def log_report(self, report: Report) -> None:
        """Write a report as text."""
        self.writer.add_text("report", textwrap.indent(str(report), "    "))

    def finish(self, *, failed: bool) -> None:
        """Close the file."""
        self.writer.close()


def _table(values: Mapping[str, str]) -> str:
    """Return a table in Markdown of values by name."""
    rows = (f"| {name} | {_cell(value)} |" for name, value in values.items())
    return "\n".join(["| name | value |", "| --- | --- |", *rows])


def _cell(value: str) -> str:
    return " ".join(value.replace("|", "\\|").split())
