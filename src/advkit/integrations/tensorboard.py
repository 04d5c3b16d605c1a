"""Evaluations in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from advkit.core.extras import require
from advkit.eval import ChunkRecord, Report
from advkit.integrations.markdown import format_markdown
from advkit.integrations.metrics import metrics_of_chunk, metrics_of_report, params_of_report


class TensorBoard:
    """Callback of `evaluate` that writes an event file for TensorBoard.

    Scalars are those of `advkit.integrations.metrics`, with the number of inputs as the step. They
    are written after each chunk. The report is a text, as `format_markdown` writes it, and so is
    each parameter.

    Args:
        folder: folder of the event file, created if missing.

    Raises:
        ImportError: tensorboard is missing; the message names the extra that installs it.

    Example:
        >>> from advkit import eval
        >>> from advkit.integrations.tensorboard import TensorBoard
        >>> tracker = TensorBoard("runs/net")  # doctest: +SKIP
        >>> report = eval.evaluate(model, x, y, attacks=attacks, callbacks=[tracker])
        ... # doctest: +SKIP
    """

    def __init__(self, folder: str | Path) -> None:
        require("tensorboard", extra="tensorboard", needed_by="TensorBoard")
        self._folder = Path(folder)
        self._writer: Any = None

    def on_chunk(self, record: ChunkRecord) -> None:
        """Write the figures so far."""
        self._write(metrics_of_chunk(record), record.inputs)
        self._writer.flush()

    def on_report(self, report: Report) -> None:
        """Write the figures and the text of the report, and close the event file."""
        self._write(metrics_of_report(report), len(report.inputs))
        self._writer.add_text("advkit/report", format_markdown(report))
        for name, value in params_of_report(report).items():
            self._writer.add_text(f"advkit/{name}", value)
        self._writer.close()
        self._writer = None

    def _write(self, metrics: dict[str, float], step: int) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
