"""Tracker for Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advkit.core import checks
from advkit.core.extras import require
from advkit.eval import Report
from advkit.integrations.tracker import Run, Tracker, require_report

PROJECT = "advkit"


class WandB(Tracker):
    """A tracker that logs each evaluation to a run of Weights & Biases, offline by default.

    Metrics are logged after each chunk, against `inputs`, the number of inputs so far. The
    configuration and the report follow at the end: see `docs/trackers.md` for their names. Unless
    you choose `mode="online"`, a run of its own stays on this machine; `wandb sync` uploads it. An
    evaluation that stops before its report ends the run as failed, at the latest when Python exits.

    If `project`, `name` and `folder` are left out and the caller has an active run, the evaluation
    is logged to that run, in its own mode, and the run stays open. Give each of several evaluations
    in one run its `prefix`.

    Args:
        project: name of the project; `None` is `"advkit"`.
        name: name of the run; `None` leaves it to Weights & Biases.
        mode: `"offline"` or `"online"`, for a run of its own.
        folder: folder in which `wandb` is created for the files of the run; `None` leaves it to
            Weights & Biases, which takes the current folder.
        artifacts: save the report in the folder `report` of the files of the run, which needs the
            extra `report`.
        prefix: text before all names and the folder.

    Raises:
        ImportError: wandb, or a package of the extra `report`, is missing.
        ValueError: `prefix` has characters that not all trackers accept, or `mode` is another one.

    Example:
        >>> from advkit import attacks, eval
        >>> from advkit.integrations.wandb import WandB
        >>> def tracked(net, x, y):
        ...     suite = [attacks.Suite(eps=8 / 255)]
        ...     tracker = WandB(project="robustness", name="baseline")
        ...     return eval.evaluate(net, x, y, attacks=suite, callbacks=[tracker])
    """

    def __init__(
        self,
        *,
        project: str | None = None,
        name: str | None = None,
        mode: str = "offline",
        folder: str | Path | None = None,
        artifacts: bool = True,
        prefix: str = "",
    ) -> None:
        super().__init__(prefix)
        checks.one_of("mode", mode, ("offline", "online"))
        self._wandb = require("wandb", extra="wandb", needed_by="WandB")
        if artifacts:
            require_report("WandB(artifacts=True)")
        self._project, self._name, self._mode = project, name, mode
        self._folder, self._artifacts = folder, artifacts

    def _begin(self) -> Run:
        named = any((self._project, self._name, self._folder))
        run, owned = None if named else self._wandb.run, False
        if run is None:
            run, owned = self._own_run(), True
        return _WandBRun(run, owned, self._prefix, self._artifacts)

    def _own_run(self) -> Any:
        """Begin a run next to the active one, which stays active."""
        return self._wandb.init(
            project=self._project or PROJECT,
            name=self._name,
            mode=self._mode,
            dir=self._folder,
            reinit="create_new",
            settings=self._wandb.Settings(console="off", silent=True),
        )


@dataclass(frozen=True)
class _WandBRun:
    """A run of Weights & Biases.

    Attributes:
        run: the run.
        owned: whether it ends with the evaluation.
        prefix: text before the names that are made here.
        artifacts: whether the report is saved.
        defined: names of the metrics whose axis is the number of inputs.
    """

    run: Any
    owned: bool
    prefix: str
    artifacts: bool
    defined: set[str] = field(default_factory=set)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics by name at a number of inputs."""
        axis = f"{self.prefix}inputs"  # steps belong to the run, which may be that of the caller
        for name in metrics:
            if name not in self.defined:
                self.run.define_metric(name, step_metric=axis)
        self.defined.update(metrics)
        self.run.log({**metrics, axis: step})

    def log_facts(self, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Log parameters and tags in the configuration."""
        self.run.config.update({**params, **tags}, allow_val_change=True)

    def log_report(self, report: Report) -> None:
        """Save a report among the files of the run."""
        if self.artifacts:
            files = Path(self.run.dir)
            folder = files / f"{self.prefix}report"
            report.save(folder)
            self.run.save(folder / "*", base_path=files, policy="now")

    def finish(self, *, failed: bool) -> None:
        """End the run, unless it belongs to the caller."""
        if self.owned:
            self.run.finish(exit_code=int(failed))
