"""A classifier that passes every request through a detector before it returns labels."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from advkit.core import checks, sample_rows
from advkit.core.protocols import Detector, InputDetector
from advkit.core.tensors import at_least_float32
from advkit.detectors.alarm import (
    Alarm,
    OnAlarm,
    Verdict,
    labels_on_alarm,
    raise_alarm,
    visible_scores,
)
from advkit.detectors.alarm_log import AlarmLog, Writable, alarm_lines
from advkit.detectors.anomaly_score import anomaly_score_of, check_detector, reads_inputs
from advkit.detectors.features import OUTPUTS, Outputs
from advkit.detectors.request_counter import RequestCounter
from advkit.models import as_classifier, evaluating
from advkit.models.inner_model import HasInnerModel


class Guard(HasInnerModel):
    """A classifier whose every request passes a detector.

    One forward pass of the model gives outputs and labels. The detector scores the outputs, or the
    inputs together with the labels, and an anomaly score above the threshold raises an alarm. The
    guard returns no label for an input that was not scored. If the detector raises, or returns
    anything other than one finite number for each input, the guard raises for the whole request.

    A guard has `scores` but no `logits`, because logits cannot express that an input is rejected.
    `Square` and `HopSkipJump` therefore attack a guard as a client would. A rejection gives these
    attacks no direction, so robustness against them is weak evidence. Gradient attacks need
    `guard.model`. `attacks.Adaptive` uses the guard and its model; evaluate a guard with it.

    Several threads may share a guard if the model and the detector allow it: counts stay exact and
    log lines stay whole. The detector and `on_alarm` get copies, which they may write to. A request
    that was scored is counted even if its alarms cannot be logged or `on_alarm` raises, and no
    label is returned for it. Copies and unpickled guards keep the model, detector, threshold and
    options, and start counting at zero.

    Args:
        model: the classifier to guard. It needs the method that `outputs` names; the class with the
            largest output is its label.
        detector: a fitted detector. It has `anomaly_score(outputs)`, or, for a detector of inputs
            such as `defenses.MRR`, `anomaly_score(x, labels)` and a true `reads_inputs`.
        threshold: the greatest anomaly score that raises no alarm, finite. `None` takes the
            `threshold` of a detector of inputs that has one; otherwise call `calibrate`.
        fpr: the false-positive rate that `calibrate` allows, between 0 and 1: the greatest share of
            clean inputs that may raise an alarm.
        on_alarm: `"reject"` returns `REJECTED`; `"flag"` returns the model's label and only counts
            the alarm. A function from an `Alarm` of `k` inputs to labels, int64 `(k,)`, replaces
            the model's labels, for example by those of another model or by `REJECTED`.
        outputs: the outputs that a detector of outputs scores, `"scores"` or `"logits"`.
        log: where a line of JSON is written for each alarm before the labels are returned. Either a
            path, to which lines are appended, or an object with `write(text)`, which is flushed
            if it has a `flush`. A line holds the time (UTC), the row in the request, the model's
            label, the anomaly score, the threshold, the model and the detector. If a line cannot be
            written whole, the guard raises, and no later line continues it. A regular file must be
            readable too, and is locked while several guards append to it (not on Windows). Lines
            are not synced to the disk.

    Attributes:
        model: the model as a classifier.
        detector: the detector that was passed.
        fpr: the false-positive rate that `calibrate` allows, a float.
        on_alarm: the `on_alarm` that was passed.
        outputs: the outputs that a detector of outputs scores.

    Raises:
        TypeError: an argument has the wrong type, `model` is not a classifier or lacks the outputs,
            or `detector` lacks an `anomaly_score` with the arguments that `reads_inputs` implies.
        ValueError: an argument is out of its range.
        OSError: the path `log` cannot be appended to.

    Example:
        >>> import torch
        >>> from advkit.detectors import Guard
        >>> class Unsure:
        ...     def anomaly_score(self, outputs):
        ...         return 1 - outputs.max(1)
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(9 * torch.eye(2))
        >>> guard = Guard(net, Unsure(), threshold=0.2)
        >>> guard.predict(torch.tensor([[0.9, 0.1], [0.5, 0.6]]))
        tensor([ 0, -1])
        >>> guard.counts()
        {'requests': 2, 'alarms': 1}
    """

    def __init__(
        self,
        model: object,
        detector: Detector | InputDetector,
        *,
        threshold: float | None = None,
        fpr: float = 0.01,
        on_alarm: OnAlarm = "reject",
        outputs: Outputs = "scores",
        log: str | os.PathLike[str] | Writable | None = None,
    ) -> None:
        check_detector(detector)
        if threshold is None and reads_inputs(detector):
            threshold = getattr(detector, "threshold", None)
        if threshold is not None:
            _check_threshold(threshold)
        checks.fraction("fpr", fpr, "(0, 1)")
        if not callable(on_alarm):
            checks.one_of("on_alarm", on_alarm, ("reject", "flag"))
        checks.one_of("outputs", outputs, OUTPUTS)
        self.model: Any = as_classifier(model)
        if not callable(getattr(self.model, outputs, None)):
            raise TypeError(
                f"`model` must have {outputs}(x) for outputs={outputs!r}, got {model!r}."
            )
        self.detector = detector
        self.fpr = float(fpr)
        self.on_alarm: OnAlarm = on_alarm
        self.outputs: Outputs = outputs
        self._threshold = None if threshold is None else float(threshold)
        self._log = None if log is None else AlarmLog(log)
        self._counter = RequestCounter()

    def __repr__(self) -> str:
        limit = f"fpr={self.fpr}" if self._threshold is None else f"threshold={self._threshold!r}"
        options = f"{limit}, on_alarm={self.on_alarm!r}"
        return f"{type(self).__name__}({self.model!r}, {self.detector!r}, {options})"

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes but the counter: a copy starts counting at zero."""
        return {name: value for name, value in vars(self).items() if name != "_counter"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._counter = RequestCounter()

    @property
    def threshold(self) -> float:
        """Greatest anomaly score that raises no alarm.

        Raises:
            ValueError: the threshold is not set or not finite.
        """
        if self._threshold is None:
            raise ValueError(
                "`threshold` must be set before a request, got None. Pass threshold=..., or call "
                "calibrate(x) with clean inputs that the detector was not fitted on."
            )
        _check_threshold(self._threshold)  # it may come from a pickle
        return self._threshold

    @property
    def max_queries(self) -> int | None:
        """Number of queries that the model allows in total; `None` if it has no limit."""
        limit: int | None = getattr(self.model, "max_queries", None)
        return limit

    @property
    def requests(self) -> int:
        """Number of inputs that were scored."""
        return self.counts()["requests"]

    @property
    def alarms(self) -> int:
        """Number of inputs that raised an alarm."""
        return self.counts()["alarms"]

    def counts(self) -> dict[str, int]:
        """Return `requests` and `alarms` of the same moment, by name."""
        return self._counter.counts()

    def calibrate(self, x: Tensor, *, batch_size: int = 128) -> Self:
        """Set the threshold to the lowest one whose false-positive rate is at most `fpr`.

        The threshold is one of the anomaly scores of `x`, so inputs with equal scores either all
        raise an alarm or none does. Calibration counts no requests and raises no alarms.

        Args:
            x: clean inputs `(n, *features)` within the bounds. Neither the detector nor the model
                may have been fitted on them: the threshold would be too low.
            batch_size: number of inputs in one pass.

        Returns:
            This guard.

        Raises:
            ValueError: `x` has fewer than 1 / `fpr` inputs, or the model or the detector did not
                return finite numbers for each of them.
            RuntimeError: the detector raised.
        """
        checks.integer("batch_size", batch_size, at_least=1)
        x = checks.inputs("x", x, self.bounds)
        allowed = int((np.arange(1, len(x) + 1) / len(x) <= self.fpr).sum()) if len(x) else 0
        if not allowed:
            raise ValueError(
                f"`x` must hold at least {math.ceil(1 / self.fpr)} inputs for fpr={self.fpr:g}, "
                f"got {len(x)}. Pass more clean inputs, or a greater fpr to the guard."
            )
        with evaluating(self.model), sample_rows.numbered(len(x), total=len(x)):
            scores = sample_rows.in_parts(self._anomaly_score, x, size=batch_size)
        self._threshold = float(scores.sort().values[-1 - allowed])
        return self

    def inspect(self, x: Tensor) -> Verdict:
        """Return the label, the anomaly score and the alarm of each input `(n, *features)`.

        Raises:
            ValueError: the threshold is not set, the model's outputs are not finite, the detector
                did not return one finite number for each input, or `on_alarm` returned a value that
                is not a label.
            TypeError: the detector returned something other than numbers, or `on_alarm` something
                other than labels.
            RuntimeError: the detector raised.
            OSError: an alarm could not be logged whole; the request is counted nevertheless.
        """
        return self._inspect(x)[0]

    def predict(self, x: Tensor) -> Tensor:
        """Return labels `(n,)`, int64, for `x` `(n, *features)`; raise as `inspect` does."""
        return self.inspect(x).labels

    def scores(self, x: Tensor) -> Tensor:
        """Return the model's outputs `(n, classes)` as a client gets them, detached.

        A rejected input has minus infinity for every class, by which attacks recognize it. An input
        that a function `on_alarm` labels has 1 for its label and 0 elsewhere. Raises as `inspect`
        does.
        """
        verdict, outputs = self._inspect(x)
        if self.on_alarm == "flag":
            return outputs
        visible = visible_scores(outputs, verdict.labels)
        return torch.where(verdict.alarm[:, None], visible, outputs)

    def _inspect(self, x: Tensor) -> tuple[Verdict, Tensor]:
        """Return the verdict and the model's outputs."""
        threshold = self.threshold  # before the model is queried
        outputs = self._outputs_for(x)
        labels = outputs.argmax(1)
        anomaly_score = anomaly_score_of(self.detector, outputs, labels, x)
        raised, alarm = raise_alarm(x, outputs, labels, anomaly_score, threshold)
        self._record(len(x), alarm, threshold)
        if len(alarm.rows):
            with sample_rows.selected(alarm.rows, len(x)):
                labels = labels.index_put((alarm.rows,), labels_on_alarm(self.on_alarm, alarm))
        return Verdict(labels=labels, anomaly_score=anomaly_score, alarm=raised), outputs

    def _anomaly_score(self, x: Tensor) -> Tensor:
        """Return the anomaly scores `(n,)` of `x` without counting or logging."""
        outputs = self._outputs_for(x)
        return torch.from_numpy(anomaly_score_of(self.detector, outputs, outputs.argmax(1), x))

    def _outputs_for(self, x: Tensor) -> Tensor:
        """Return a copy of the model's outputs `(n, classes)` for `x`, in float32 or float64."""
        checks.tensor("x", x)
        with torch.no_grad():
            outputs = at_least_float32(getattr(self.model, self.outputs)(x).detach()).clone()
        if outputs.ndim != 2 or len(outputs) != len(x):
            raise ValueError(
                f"`model` must return {self.outputs} of shape ({len(x)}, classes), "
                f"got {tuple(outputs.shape)}."
            )
        bad = ~outputs.isfinite().all(1)
        if bad.any():
            raise ValueError(
                f"`model` must return finite {self.outputs}, got NaN or infinity "
                f"({checks.samples(bad)})."
            )
        return outputs

    def _record(self, n: int, alarm: Alarm, threshold: float) -> None:
        """Count `n` inputs and the alarms among them, and log the alarms."""
        with self._counter.adding(n, len(alarm.rows)):
            if self._log is not None and len(alarm.rows):
                self._log.append(alarm_lines(alarm, threshold, self.model, self.detector))


def _check_threshold(threshold: float) -> None:
    """Raise unless `threshold` is a finite number."""
    checks.number("threshold", threshold)
    if not math.isfinite(threshold):
        raise ValueError(f"`threshold` must be finite, got {threshold}.")
