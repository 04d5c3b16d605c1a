"""Alarms of a guard: the inputs that raise them, and the labels returned for those inputs."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from advkit.core import checks
from advkit.detectors.features import Floats
from advkit.models import REJECTED


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """Labels, anomaly scores and alarms of a guard for `n` inputs.

    Attributes:
        labels: int64 `(n,)`, the labels that the guard returns, after `on_alarm`.
        anomaly_score: float64 `(n,)`, the detector's scores.
        alarm: bool `(n,)`; True where the anomaly score is above the threshold.
        request_id: the id of the request, which the lines of its alarms in the log have, too.
    """

    labels: Tensor
    anomaly_score: Floats
    alarm: Tensor
    request_id: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Alarm:
    """The `k` inputs of a request that raised an alarm.

    A function `on_alarm` gets copies, which it may write to.

    Attributes:
        x: the inputs `(k, *features)`, clamped to the bounds.
        outputs: `(k, classes)`, the model's outputs, which a detector of outputs scored; detached.
        labels: int64 `(k,)`, the model's labels.
        anomaly_score: float64 `(k,)`, the detector's scores.
        rows: int64 `(k,)`, the positions of the inputs in the request.
        request_id: the id of the request.
    """

    x: Tensor
    outputs: Tensor
    labels: Tensor
    anomaly_score: Floats
    rows: Tensor
    request_id: str


OnAlarm = Literal["reject", "flag"] | Callable[[Alarm], Tensor]


def checked_request_id(request_id: str | None) -> str:
    """Return the id that a caller gave to a request, or a random one of 32 hexadecimal digits.

    Raises:
        TypeError: the id is not a string.
        ValueError: it is empty.
    """
    if request_id is None:
        return uuid.uuid4().hex
    if not isinstance(request_id, str):
        raise TypeError(f"`request_id` must be a str, got {type(request_id).__name__}.")
    if not request_id:
        raise ValueError("`request_id` must not be empty, got ''. Pass None to have one made.")
    return request_id


def raise_alarm(
    x: Tensor,
    outputs: Tensor,
    labels: Tensor,
    anomaly_score: Floats,
    threshold: float,
    request_id: str,
) -> tuple[Tensor, Alarm]:
    """Raise an alarm for the inputs whose anomaly score is above the threshold.

    Args:
        x: the inputs of a request, `(n, *features)`.
        outputs: `(n, classes)`, the model's outputs for them.
        labels: int64 `(n,)`, the model's labels.
        anomaly_score: `(n,)`, the detector's scores.
        threshold: the greatest anomaly score that raises no alarm.
        request_id: the id of the request.

    Returns:
        Mask of these inputs, bool `(n,)`, and their alarm.
    """
    above = ~(anomaly_score <= threshold)  # NaN on either side raises an alarm
    raised = torch.from_numpy(above).to(outputs.device)
    rows = raised.nonzero().flatten()
    alarm = Alarm(
        x=x[rows],
        outputs=outputs[rows],
        labels=labels[rows],
        anomaly_score=anomaly_score[above],
        rows=rows,
        request_id=request_id,
    )
    return raised, alarm


def labels_on_alarm(on_alarm: OnAlarm, alarm: Alarm) -> Tensor:
    """Return the labels `(k,)` that a guard returns for the inputs of an alarm.

    Raises:
        TypeError: the function `on_alarm` returned something other than int64 labels.
        ValueError: it returned labels of another shape, or a label that is not a class.
    """
    if callable(on_alarm):
        return _checked_labels(on_alarm(_copied(alarm)), alarm)
    return alarm.labels if on_alarm == "flag" else torch.full_like(alarm.labels, REJECTED)


def visible_scores(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return scores `(n, classes)` that reveal only the labels `(n,)`.

    They are 1 for the label and 0 elsewhere, and minus infinity for a rejected input.
    """
    one_hot = torch.zeros_like(outputs).scatter(1, labels[:, None].clamp_min(0), 1)
    return one_hot.masked_fill(labels[:, None] == REJECTED, -math.inf)


def _copied(alarm: Alarm) -> Alarm:
    return Alarm(
        x=alarm.x.clone(),
        outputs=alarm.outputs.clone(),
        labels=alarm.labels.clone(),
        anomaly_score=alarm.anomaly_score.copy(),
        rows=alarm.rows.clone(),
        request_id=alarm.request_id,
    )


def _checked_labels(labels: Tensor, alarm: Alarm) -> Tensor:
    """Return `labels` on the device of the alarm.

    Raises:
        TypeError: they are not an int64 tensor.
        ValueError: they have another shape, or one is neither a class nor `REJECTED`.
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"`on_alarm` must return labels as an int64 tensor, got {kind}.")
    if labels.shape != alarm.labels.shape:
        expected, shape = tuple(alarm.labels.shape), tuple(labels.shape)
        raise ValueError(f"`on_alarm` must return labels of shape {expected}, got {shape}.")
    labels, classes = labels.to(alarm.labels.device), alarm.outputs.shape[1]
    bad = ~((labels == REJECTED) | ((labels >= 0) & (labels < classes)))
    if bad.any():
        raise ValueError(
            f"`on_alarm` must return labels from 0 to {classes - 1} or {REJECTED}, "
            f"got {int(labels[bad][0])} ({checks.samples(bad, alarm.rows)})."
        )
    return labels
