"""Evaluations in MLflow."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from advkit.core.extras import require
from advkit.eval import ChunkRecord, Report
from advkit.integrations.metrics import metrics_of_chunk, metrics_of_report, params_of_report

_MOST_METRICS = 1000  # of a request, the limit of MLflow


class MLflow:
    """Callback of `evaluate` that logs to MLflow.

    The metrics of each chunk are kept, and logged with the report at the end, in a run that begins
    and ends there. An evaluation that is killed therefore leaves no run that seems to be running;
    with a `store`, the resumed one logs all chunks. Inside an active run of yours, the evaluation
    is logged to that run, which stays open.

    The run has the metrics and parameters of `advkit.integrations.metrics`, with the number of
    inputs as the step, and the files of the report as artifacts in the folder `advkit`.

    Args:
        tracking_uri: where MLflow stores runs, such as `"sqlite:///mlflow.db"`; `None` for its
            default.
        experiment: name of the experiment, created if missing; `None` for the active one.
        run_name: name of the run; `None` lets MLflow choose one. An active run keeps its name.
        artifacts: whether the files of the report are logged, which needs the extra `report`.

    Raises:
        ImportError: MLflow is missing; the message names the extra that installs it.

    Example:
        >>> from advkit import eval
        >>> from advkit.integrations.mlflow import MLflow
        >>> tracker = MLflow(tracking_uri="sqlite:///mlflow.db")  # doctest: +SKIP
        >>> report = eval.evaluate(model, x, y, attacks=attacks, callbacks=[tracker])
        ... # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        run_name: str | None = None,
        artifacts: bool = True,
    ) -> None:
        self._mlflow = require("mlflow", extra="mlflow", needed_by="MLflow")
        self._tracking_uri, self._experiment = tracking_uri, experiment
        self._run_name, self._artifacts = run_name, artifacts
        self._chunks: list[tuple[ChunkRecord, int]] = []  # with the time in milliseconds

    def on_chunk(self, record: ChunkRecord) -> None:
        """Keep the metrics of a chunk."""
        self._chunks.append((record, int(time.time() * 1000)))

    def on_report(self, report: Report) -> None:
        """Log the metrics of all chunks, and the report."""
        if self._mlflow.active_run() is not None:
            self._log(report)
            return
        with self._tracking():
            number = self._experiment_id()
            with self._mlflow.start_run(run_name=self._run_name, experiment_id=number):
                self._log(report)

    @contextmanager
    def _tracking(self) -> Iterator[None]:
        """Store runs at the URI of this callback inside the block."""
        before = self._mlflow.get_tracking_uri()
        try:
            if self._tracking_uri is not None:
                self._mlflow.set_tracking_uri(self._tracking_uri)
            yield
        finally:
            self._mlflow.set_tracking_uri(before)

    def _experiment_id(self) -> str | None:
        """Return the identifier of the experiment, created if missing; `None` for the default."""
        if self._experiment is None:
            return None
        known = self._mlflow.get_experiment_by_name(self._experiment)
        found: str = (
            self._mlflow.create_experiment(self._experiment)
            if known is None
            else known.experiment_id
        )
        return found

    def _log(self, report: Report) -> None:
        self._mlflow.log_params(params_of_report(report))
        self._log_chunks()
        self._mlflow.log_metrics(metrics_of_report(report), step=len(report.inputs))
        self._mlflow.set_tag("advkit.verdict", report.verdict)
        if self._artifacts:
            with tempfile.TemporaryDirectory() as folder:
                report.save(folder)
                self._mlflow.log_artifacts(folder, artifact_path="advkit")

    def _log_chunks(self) -> None:
        """Log the metrics of all chunks in few requests."""
        metric: Any = require("mlflow.entities", extra="mlflow", needed_by="MLflow").Metric
        chunks, self._chunks = self._chunks, []
        metrics = [
            metric(name, value, at, record.inputs)
            for record, at in chunks
            for name, value in metrics_of_chunk(record).items()
        ]
        run = self._mlflow.active_run().info.run_id
        for first in range(0, len(metrics), _MOST_METRICS):
            part = metrics[first : first + _MOST_METRICS]
            self._mlflow.MlflowClient().log_batch(run, metrics=part)
