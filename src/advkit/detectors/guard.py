"""A classifier that judges every request before it answers."""

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
    answer_alarm,
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

    One pass of the model gives outputs and labels; the detector looks at the outputs, or at the
    inputs and the labels, and a suspicion above the threshold is an alarm. Nothing is answered that
    was not judged: where the detector raises, or answers anything but one finite number for each
    input, so does the guard, and the whole request is without an answer.

    A guard has scores but no logits, which cannot say that an input is rejected. So Square and
    HopSkipJump attack it as it stands and see what a client sees: a rejection shows them no way, so
    that withstanding them says little. Gradient attacks go to `.model`, and `attacks.Adaptive`, by
    which a guard is to be judged, to both.

    Requests may come from several threads, if the model and the detector allow it: counts are exact
    and lines of the log whole. The detector and `on_alarm` get copies, which they may write to. A
    request that was judged is counted, also if its alarms cannot be logged or `on_alarm` raises,
    so that it is not answered. Copies, also those that are pickled, keep model, detector, threshold
    and settings, and begin to count at zero.

    Args:
        model: what answers; a classifier with what `outputs` names, whose largest output wins.
        detector: what judges, fitted: an object with `anomaly_score(outputs)`, or one that looks at
            inputs, whose `reads_inputs` is true, with `anomaly_score(x, labels)`, such as
            `defenses.MRR`.
        threshold: the most suspicion that raises no alarm, finite; `None` takes the `threshold` of
            a detector of inputs that has one, else `calibrate` finds it.
        fpr: false-positive rate that `calibrate` allows, between 0 and 1: the largest share of
            clean inputs that may raise an alarm.
        on_alarm: `"reject"` answers `REJECTED`; `"flag"` answers as if nothing had been, and only
            counts; a function from an `Alarm` of `k` inputs to labels int64 `(k,)`, `REJECTED`
            among them, answers in the model's place, say by another model.
        outputs: what a detector of outputs is shown: the model's `"scores"` or its `"logits"`.
        log: gets a line of JSON for each alarm, before the request is answered: a path, to which
            is appended, or an object with a `write` for text, which is flushed if it can be. A line
            has the time (UTC), the row in the request, the model's label, suspicion, threshold,
            model and detector. If it cannot be written whole, the request is not answered, and no
            later line continues it. A regular file must be readable too, and is locked while
            several guards append to it (not on Windows). Lines are not synced to the disk.

    Attributes:
        model: as a classifier.
        detector: as given.

    Raises:
        TypeError: an argument has the wrong type; `model` is no classifier or lacks the outputs.
        ValueError: an argument is out of its range.
        OSError: nothing can be appended at the path `log`.

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
        checks.fraction("fpr", fpr)
        if not 0 < fpr < 1:
            raise ValueError(f"`fpr` must lie between 0 and 1, got {fpr}.")
        if not callable(on_alarm):
            checks.one_of("on_alarm", on_alarm, ("reject", "flag"))
        checks.one_of("outputs", outputs, OUTPUTS)
        self.model: Any = as_classifier(model)
        if not callable(getattr(self.model, outputs, None)):
            raise TypeError(
                f"`model` must have {outputs}(x) for outputs={outputs!r}, got {model!r}"
            )
        self.detector = detector
        self.fpr = float(fpr)
        self.on_alarm: OnAlarm = on_alarm
        self.outputs: Outputs = outputs
        self._threshold = None if threshold is None else float(threshold)
        self._log = None if log is None else AlarmLog(log)
        self._counter = RequestCounter()

    def __repr__(self) -> str:
        given = f"threshold={self._threshold!r}, on_alarm={self.on_alarm!r}"
        return f"{type(self).__name__}({self.model!r}, {self.detector!r}, {given})"

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the counter: a copy begins at zero."""
        return {name: value for name, value in vars(self).items() if name != "_counter"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._counter = RequestCounter()

    @property
    def threshold(self) -> float:
        """The most suspicion that raises no alarm.

        Raises:
            ValueError: there is none yet, or it is not finite.
        """
        if self._threshold is None:
            raise ValueError(
                "threshold is not set: pass threshold=... or call calibrate(x) with clean inputs "
                "that the detector was not fitted on"
            )
        _check_threshold(self._threshold)  # it may come from a pickle
        return self._threshold

    @property
    def max_queries(self) -> int | None:
        """Queries that the model has in all, if it counts them; else `None`."""
        limit: int | None = getattr(self.model, "max_queries", None)
        return limit

    @property
    def requests(self) -> int:
        """Inputs that were judged."""
        return self.counts()["requests"]

    @property
    def alarms(self) -> int:
        """Those of them that raised an alarm."""
        return self.counts()["alarms"]

    def counts(self) -> dict[str, int]:
        """`requests` and `alarms` of the same moment, by name."""
        return self._counter.counts()

    def calibrate(self, x: Tensor, *, batch_size: int = 128) -> Self:
        """Find the threshold: the least that at most a share of clean inputs exceeds.

        It is one of their own suspicions, so that inputs of equal suspicion alarm together or not
        at all. Nothing is counted, and no alarm raised.

        Args:
            x: clean inputs `(n, *features)` within the bounds, none of which the detector or the
                model was fitted on: on those it would find too low a threshold.
            batch_size: samples sent at once.

        Returns:
            This guard.

        Raises:
            ValueError: `x` has too few inputs for it, less than one
                of which might alarm; the model or the detector answers no numbers for some.
            RuntimeError: the detector raised.
        """
        checks.integer("batch_size", batch_size, at_least=1)
        x = checks.inputs(x, self.bounds)
        allowed = int((np.arange(1, len(x) + 1) / len(x) <= self.fpr).sum()) if len(x) else 0
        if not allowed:
            raise ValueError(
                f"`x` must hold at least {math.ceil(1 / self.fpr)} inputs for fpr={self.fpr:g}, got {len(x)}"
            )
        with evaluating(self.model), sample_rows.numbered(len(x), total=len(x)):
            found = sample_rows.in_parts(self._anomaly_score, x, size=batch_size)
        self._threshold = float(found.sort().values[-1 - allowed])
        return self

    def inspect(self, x: Tensor) -> Verdict:
        """Answers, and how suspicious each input `(n, *features)` is.

        Raises:
            ValueError: there is no threshold yet; the model's outputs are not finite; the detector
                did not answer one finite number for each input; what `on_alarm` gave is no label.
            TypeError: the detector or `on_alarm` answered with something else than numbers or
                labels.
            RuntimeError: the detector raised.
            OSError: an alarm could not be logged whole; the request is counted all the same.
        """
        return self._inspected(x)[0]

    def predict(self, x: Tensor) -> Tensor:
        """Labels `(n,)`, int64, of `x` `(n, *features)`; raises as `inspect` does."""
        return self.inspect(x).labels

    def scores(self, x: Tensor) -> Tensor:
        """The model's outputs `(n, classes)` as far as a client sees them, detached.

        A rejected input has minus infinity for every class, by which attacks know it; one that
        `on_alarm` labels has 1 for its label and 0 elsewhere, since there is nothing else to see.
        Raises as `inspect` does.
        """
        verdict, outputs = self._inspected(x)
        if self.on_alarm == "flag":
            return outputs
        seen = visible_scores(outputs, verdict.labels)
        return torch.where(verdict.alarm[:, None], seen, outputs)

    def _inspected(self, x: Tensor) -> tuple[Verdict, Tensor]:
        """Return the verdict, and the model's outputs."""
        threshold = self.threshold  # before the model is queried
        outputs = self._outputs_for(x)
        labels = outputs.argmax(1)
        anomaly_score = anomaly_score_of(self.detector, outputs, labels, x)
        raised, alarm = raise_alarm(x, outputs, labels, anomaly_score, threshold)
        self._record(len(x), alarm, threshold)
        if len(alarm.rows):
            with sample_rows.selected(alarm.rows, len(x)):
                labels = labels.index_put((alarm.rows,), answer_alarm(self.on_alarm, alarm))
        return Verdict(labels=labels, anomaly_score=anomaly_score, alarm=raised), outputs

    def _anomaly_score(self, x: Tensor) -> Tensor:
        """Return the suspicion `(n,)` of each of `x`, of which nothing is answered."""
        outputs = self._outputs_for(x)
        return torch.from_numpy(anomaly_score_of(self.detector, outputs, outputs.argmax(1), x))

    def _outputs_for(self, x: Tensor) -> Tensor:
        """Return a copy of the model's outputs for `x`, `(n, classes)`, of float32 at least."""
        if not isinstance(x, Tensor):
            raise TypeError(f"`x` must be a torch.Tensor, got {type(x).__name__}")
        with torch.no_grad():
            outputs = at_least_float32(getattr(self.model, self.outputs)(x).detach()).clone()
        if outputs.ndim != 2 or len(outputs) != len(x):
            raise ValueError(
                f"the model must return {self.outputs} ({len(x)}, classes), "
                f"got {tuple(outputs.shape)}"
            )
        bad = ~outputs.isfinite().all(1)
        if bad.any():
            raise ValueError(
                f"the model returned NaN or infinite {self.outputs} for sample "
                f"{checks.indices(bad)}"
            )
        return outputs

    def _record(self, n: int, alarm: Alarm, threshold: float) -> None:
        """Count `n` inputs and the alarms among them, and log those."""
        with self._counter.adding(n, len(alarm.rows)):
            if self._log is not None and len(alarm.rows):
                self._log.append(alarm_lines(alarm, threshold, self.model, self.detector))


def _check_threshold(threshold: float) -> None:
    """Raise unless `threshold` is a finite number."""
    checks.number("threshold", threshold)
    if not math.isfinite(threshold):
        raise ValueError(f"`threshold` must be finite, got {threshold}")
