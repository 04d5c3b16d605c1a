"""Evaluations in Weights & Biases."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

from advkit.core import checks
from advkit.core.extras import require
from advkit.eval import ChunkRecord, Report
from advkit.integrations.metrics import metrics_of_chunk, metrics_of_report, params_of_report

Mode = Literal["offline", "online"]


class WandB:
    """Callback of `evaluate` that logs to Weights & Biases.

    By default the run is kept on this machine; `wandb sync` sends it later. The run begins with the
    first chunk. Inside an active run of yours, the evaluation is logged to that run, which stays
    open, in its own mode.

    The run has the metrics of `advkit.integrations.metrics` in its history, the figures of the
    report in its summary, the parameters in its configuration, and the files of the report as an
    artifact.

    Args:
        project: name of the project.
        name: name of the run; `None` lets Weights & Biases choose one.
        mode: `"offline"`, or `"online"` to send the run to the server of the account.
        folder: folder for the files of the run; `None` for the default, `wandb`.

    Raises:
        ImportError: wandb is missing; the message names the extra that installs it.
        ValueError: the mode is unknown.

    Example:
        >>> from advkit import eval
        >>> from advkit.integrations.wandb import WandB
        >>> tracker = WandB(project="robustness")  # doctest: +SKIP
        >>> report = eval.evaluate(model, x, y, attacks=attacks, callbacks=[tracker])
        ... # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        project: str,
        name: str | None = None,
        mode: Mode = "offline",
        folder: str | Path | None = None,
    ) -> None:
        checks.one_of("mode", mode, ("offline", "online"))
        self._wandb = require("wandb", extra="wandb", needed_by="WandB")
        self._settings = {"project": project, "name": name, "mode": mode}
        self._folder = None if folder is None else Path(folder)
        self._run: Any = None
        self._own = False

    def on_chunk(self, record: ChunkRecord) -> None:
        """Log the figures so far."""
        self._active().log(metrics_of_chunk(record))

    def on_report(self, report: Report) -> None:
        """Log the report, and end the run unless it is yours."""
        run = self._active()
        run.config.update(params_of_report(report))
        run.summary.update({**metrics_of_report(report), "verdict": report.verdict})
        with tempfile.TemporaryDirectory() as folder:
            report.save(folder)
            artifact = self._wandb.Artifact("advkit-report", type="report")
            artifact.add_dir(folder)  # which copies the files
            run.log_artifact(artifact)
        self._end()

    def _active(self) -> Any:
        """Return the active run, or begin one."""
        if self._run is None:
            self._own = self._wandb.run is None
            self._run = self._begun() if self._own else self._wandb.run
        return self._run

    def _begun(self) -> Any:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        return self._wandb.init(**self._settings, dir=self._folder)

    def _end(self) -> None:
        if self._own:
            self._run.finish()
        self._run = None
