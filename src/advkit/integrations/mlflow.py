"""Tracker for MLflow."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from advkit.core.extras import require
from advkit.eval import Report
from advkit.integrations.tracker import Run, Tracker, require_report

EXPERIMENT = "advkit"


class MLflow(Tracker):
    """A tracker that logs each evaluation to a run of MLflow.

    Metrics are logged after each chunk, with the number of inputs so far as the step, because an
    evaluation that is worth a tracker takes hours. Parameters, tags and the report follow at the
    end: see `docs/trackers.md` for their names. A run of its own ends as FINISHED with the report.
    An evaluation that stops before ends it as FAILED, at the latest when Python exits. A process
    that is killed leaves it as RUNNING, like any run of MLflow.

    If `tracking_uri`, `experiment` and `run_name` are left out and the caller has an active run,
    the evaluation is logged to that run, which stays open. MLflow refuses a parameter with another
    value: give each of several evaluations in one run its `prefix`.

    Args:
        tracking_uri: address of the server, or of a database such as `"sqlite:///mlflow.db"`;
            `None` takes that of MLflow.
        experiment: name of the experiment, created if missing; `None` is `"advkit"`.
        run_name: name of the run; `None` leaves it to MLflow.
        artifacts: save the report in the folder `report` of the run, which needs the extra
            `report`.
        prefix: text before all names and the folder.

    Raises:
        ImportError: mlflow, or a package of the extra `report`, is missing.
        ValueError: `prefix` has characters that not all trackers accept.

    Example:
        >>> from advkit import attacks, eval
        >>> from advkit.integrations.mlflow import MLflow
        >>> def tracked(net, x, y):
        ...     tracker = MLflow(tracking_uri="sqlite:///mlflow.db", run_name="baseline")
        ...     suite = [attacks.Suite(eps=8 / 255)]
        ...     return eval.evaluate(net, x, y, attacks=suite, callbacks=[tracker])
    """

    def __init__(
        self,
        *,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        run_name: str | None = None,
        artifacts: bool = True,
        prefix: str = "",
    ) -> None:
        super().__init__(prefix)
        self._mlflow = require("mlflow", extra="mlflow", needed_by="MLflow")
        if artifacts:
            require_report("MLflow(artifacts=True)")
        if tracking_uri is not None:
            self._mlflow.MlflowClient(tracking_uri)  # raises for an address of an unknown kind
        self._uri, self._run_name = tracking_uri, run_name
        self._experiment = experiment or EXPERIMENT
        self._joins_active_run = not any((tracking_uri, experiment, run_name))
        self._folder = f"{prefix}report" if artifacts else None

    def _begin(self) -> Run:
        client = self._mlflow.MlflowClient(self._uri)
        active = self._mlflow.active_run() if self._joins_active_run else None
        run = self._own_run(client) if active is None else active
        return _MLflowRun(
            entities=self._mlflow.entities,
            client=client,
            run_id=run.info.run_id,
            owned=active is None,
            folder=self._folder,
        )

    def _own_run(self, client: Any) -> Any:
        """Create a run, which does not become the active one."""
        known = client.get_experiment_by_name(self._experiment)
        number = known.experiment_id if known else client.create_experiment(self._experiment)
        return client.create_run(number, run_name=self._run_name)


@dataclass(frozen=True, kw_only=True)
class _MLflowRun:
    """A run of MLflow.

    Attributes:
        entities: the module with the classes of metrics, parameters and tags.
        client: client of its server.
        run_id: its identifier.
        owned: whether it ends with the evaluation.
        folder: folder of the report among its artifacts; `None` saves no report.
    """

    entities: Any
    client: Any
    run_id: str
    owned: bool
    folder: str | None

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics by name at a number of inputs."""
        now = int(time.time() * 1000)
        made = [self.entities.Metric(name, value, now, step) for name, value in metrics.items()]
        self.client.log_batch(self.run_id, metrics=made)  # in as many requests as MLflow needs

    def log_facts(self, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Log parameters and tags by name."""
        self.client.log_batch(
            self.run_id,
            params=[self.entities.Param(*item) for item in params.items()],
            tags=[self.entities.RunTag(*item) for item in tags.items()],
        )

    def log_report(self, report: Report) -> None:
        """Save a report among the artifacts."""
        if self.folder is not None:
            with tempfile.TemporaryDirectory() as saved:
                report.save(saved)
                self.client.log_artifacts(self.run_id, saved, self.folder)

    def finish(self, *, failed: bool) -> None:
        """End the run, unless it belongs to the caller."""
        if self.owned:
            self.client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")
