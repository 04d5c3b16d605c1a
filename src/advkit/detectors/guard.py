"""A classifier that passes every request through a detector before it returns labels."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from advkit.core import checks, sample_rows
from advkit.core.protocols import Detector, InputDetector
from advkit.detectors.alarm import (
    Alarm,
    OnAlarm,
    Verdict,
    checked_request_id,
    labels_on_alarm,
    raise_alarm,
    visible_scores,
)
from advkit.detectors.alarm_log import AlarmLog, Writable, alarm_lines
from advkit.detectors.anomaly_score import (
    anomaly_score_of,
    check_detector,
    check_threshold,
    reads_inputs,
)
from advkit.detectors.features import OUTPUTS, Floats, Outputs
from advkit.detectors.guard_file import StoredGuard, write
from advkit.detectors.metrics import exposition, guard_metrics
from advkit.detectors.model_outputs import check_has_outputs, outputs_of
from advkit.detectors.request_counter import RequestCounter
from advkit.models import as_classifier, evaluating
from advkit.models.inner_model import HasInnerModel
from advkit.models.training_mode import (
    check_evaluation_mode,
    evaluating_in_one_thread,
    one_thread,
)


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

    Inputs must lie within the bounds of the model, as for an attack. Values outside by rounding
    alone are clamped before the model and the detector get them.

    Several threads may share a guard if the model and the detector allow it: counts stay exact and
    log lines stay whole. A torch module may be in training mode: it runs in evaluation mode, and is
    in training mode again after the last request. `TorchClassifier(mode="keep")` may run a module
    in training mode; such requests wait for each other. Other modules in training mode are refused.

    The detector and `on_alarm` get copies, which they may write to. A request that was scored is
    counted even if its alarms cannot be logged or `on_alarm` raises, and no label is returned for
    it. Copies and unpickled guards keep the model, detector, threshold and options, and start
    counting at zero.

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
            if it has a `flush`. A line holds the time (UTC), the id of the request, the row in it,
            the model's label, the anomaly score, the SHA-256 of the input, the threshold, the model
            and the detector. The digest is that of a line with dtype and shape, such as
            "torch.float32 (1, 8, 8)", its newline, and the values in row-major order. They are the
            values that the caller passed. If a line cannot be written whole, the guard raises, and
            no later line continues it. A regular file must be readable too, and is locked while
            several guards append to it (not on Windows). Lines are not synced to the disk.

    Attributes:
        model: the model as a classifier.
        detector: the detector that was passed.
        fpr: the false-positive rate that `calibrate` allows, a float.
        on_alarm: the `on_alarm` that was passed.
        outputs: the outputs that a detector of outputs scores.

    Raises:
        TypeError: an argument has the wrong type, `model` is not a classifier or lacks the outputs,
            or `detector` lacks an `anomaly_score` with the arguments that `reads_inputs` implies.
        ValueError: an argument is out of its range, or `model` or `detector` is a module in
            training mode that does not save its state.
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
            check_threshold(threshold)
        checks.fraction("fpr", fpr, "(0, 1)")
        if not callable(on_alarm):
            checks.one_of("on_alarm", on_alarm, ("reject", "flag"))
        checks.one_of("outputs", outputs, OUTPUTS)
        self.model: Any = as_classifier(model)
        check_has_outputs(self.model, outputs)
        self.detector = detector
        self._check_modes()
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
        check_threshold(self._threshold)  # it may come from a pickle
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
        totals = self._counter.totals()
        return {"requests": totals.requests, "alarms": totals.alarms}

    def metrics(self, labels: Mapping[str, str] | None = None) -> str:
        """Return counters and the threshold in the text format of Prometheus, version 0.0.4.

        Serve it as `text/plain; version=0.0.4`. The names begin with `advkit_guard_`:

        - `requests_total`: inputs that were scored.
        - `alarms_total`: inputs that raised an alarm.
        - `failures_total`: calls of `inspect`, `predict` or `scores` that raised an error, for
          example because of an input outside the bounds, or an alarm that could not be logged.
        - `threshold`: the threshold, a gauge; NaN until it is set.

        All numbers are of the same moment and of this process.

        Args:
            labels: labels of each number, such as `{"model": "digits"}`.

        Raises:
            TypeError: `labels` is not a dict of strings.
            ValueError: the name of a label is not valid in Prometheus.
        """
        totals = self._counter.totals()
        values = {**totals._asdict(), "threshold": self._threshold}
        return exposition(guard_metrics(**values), {} if labels is None else labels)

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
        self._check_modes()
        x = checks.inputs("x", x, self.bounds)
        allowed = int((np.arange(1, len(x) + 1) / len(x) <= self.fpr).sum()) if len(x) else 0
        if not allowed:
            raise ValueError(
                f"`x` must hold at least {math.ceil(1 / self.fpr)} inputs for fpr={self.fpr:g}, "
                f"got {len(x)}. Pass more clean inputs, or a greater fpr to the guard."
            )
        with evaluating(self), sample_rows.numbered(len(x), total=len(x)):
            scores = sample_rows.in_parts(
                lambda part: torch.from_numpy(self._score(part)[2]), x, size=batch_size
            )
        self._threshold = float(scores.sort().values[-1 - allowed])
        return self

    def inspect(self, x: Tensor, *, request_id: str | None = None) -> Verdict:
        """Return the label, the anomaly score and the alarm of each input `(n, *features)`.

        Args:
            x: inputs within the bounds, of a floating dtype.
            request_id: an id for the log, not empty; `None` for a random one of 32 hexadecimal
                digits. The verdict has it as `request_id`, so that you can return it to the client.

        Raises:
            ValueError: the threshold is not set, `x` is not finite or not within the bounds, a
                module is in training mode, the model's outputs are not finite, the detector did not
                return one finite number for each input, or `on_alarm` returned a value that is not
                a label.
            TypeError: `x` is not a tensor of floats, the id is not a string, the detector returned
                something other than numbers, or `on_alarm` something other than labels.
            RuntimeError: the detector raised.
            OSError: an alarm could not be logged whole; the request is counted nevertheless.
        """
        return self._inspect(x, request_id)[0]

    def predict(self, x: Tensor, *, request_id: str | None = None) -> Tensor:
        """Return labels `(n,)`, int64, for `x` `(n, *features)`.

        The log gets the `request_id`, or a random one. Raises as `inspect` does.
        """
        return self.inspect(x, request_id=request_id).labels

    def scores(self, x: Tensor, *, request_id: str | None = None) -> Tensor:
        """Return the model's outputs `(n, classes)` as a client gets them, detached.

        A rejected input has minus infinity for every class, by which attacks recognize it. An input
        that a function `on_alarm` labels has 1 for its label and 0 elsewhere. The log gets the
        `request_id`, or a random one. Raises as `inspect` does.
        """
        verdict, outputs = self._inspect(x, request_id)
        if self.on_alarm == "flag":
            return outputs
        visible = visible_scores(outputs, verdict.labels)
        return torch.where(verdict.alarm[:, None], visible, outputs)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the guard without its model to an `.npz` archive, whole or not at all.

        The file holds the threshold, `fpr`, `on_alarm`, `outputs`, and a description of the model.
        An `OutputForest` of trees, `MaxSoftmax` or `OutputEntropy` is in the file, too. Save and
        load another detector yourself, such as `defenses.MRR`. Neither a function `on_alarm` nor
        the log or the counts are in the file.

        Raises:
            ValueError: the threshold is not set, or the detector is not fitted.
            OSError: the file cannot be written.
        """
        options = {"threshold": self.threshold, "fpr": self.fpr, "outputs": self.outputs}
        write(Path(path), self.model, self.detector, self.on_alarm, options)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: object,
        *,
        detector: Detector | InputDetector | None = None,
        on_alarm: OnAlarm | None = None,
        log: str | os.PathLike[str] | Writable | None = None,
    ) -> Self:
        """Read a guard that `save` wrote, without running code from the file.

        Args:
            path: path of the file.
            model: the model of the saved guard. It must print like it, and have the same weights,
                preprocessing, output and mode. It may be compiled or on another device. What
                functions, estimators and quantized modules compute is not compared.
            detector: the fitted detector, if the file does not hold it.
            on_alarm: another `on_alarm` than that of the saved guard; required if that is a
                function.
            log: where alarms are written, as for a new guard.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is damaged or not one of a guard, `model` is another one, or
                `detector` or `on_alarm` is missing.
            TypeError: `detector` is of another type than that of the saved guard.
            OSError: the path `log` cannot be appended to.
        """
        stored = StoredGuard(Path(path))
        classifier = as_classifier(model)
        stored.check_model(classifier)
        return cls(
            classifier,
            stored.detector(detector),
            on_alarm=stored.on_alarm(on_alarm),
            log=log,
            **stored.options,
        )

    def evaluating(self) -> AbstractContextManager[None]:
        """Return a context for many calls, which saves and restores the inner state once."""
        return evaluating_in_one_thread(self.model)

    def _inspect(self, x: Tensor, request_id: str | None) -> tuple[Verdict, Tensor]:
        """Return the verdict and the model's outputs."""
        with self._counter.counting_failures():
            threshold = self.threshold  # before the model is queried
            request_id = checked_request_id(request_id)
            self._check_modes()
            inside = checks.inputs("x", x, self.bounds)
            with one_thread(self.model):
                outputs, labels, anomaly_score = self._score(inside)
            raised, alarm = raise_alarm(
                inside, outputs, labels, anomaly_score, threshold, request_id
            )
            self._record(x, alarm, threshold)
            if len(alarm.rows):
                with sample_rows.selected(alarm.rows, len(x)):
                    labels = labels.index_put((alarm.rows,), labels_on_alarm(self.on_alarm, alarm))
        verdict = Verdict(
            labels=labels, anomaly_score=anomaly_score, alarm=raised, request_id=request_id
        )
        return verdict, outputs

    def _check_modes(self) -> None:
        check_evaluation_mode("model", self.model)
        check_evaluation_mode("detector", self.detector)

    def _score(self, x: Tensor) -> tuple[Tensor, Tensor, Floats]:
        """Return outputs `(n, classes)`, labels and anomaly scores without counting or logging."""
        outputs = outputs_of(self.model, self.outputs, x)
        labels = outputs.argmax(1)
        return outputs, labels, anomaly_score_of(self.detector, outputs, labels, x)

    def _record(self, x: Tensor, alarm: Alarm, threshold: float) -> None:
        """Count the inputs and the alarms among them, and log the alarms."""
        self._counter.add(len(x), len(alarm.rows))  # at once: a log may be slow
        if self._log is not None and len(alarm.rows):
            self._log.append(alarm_lines(alarm, x, threshold, self.model, self.detector))
