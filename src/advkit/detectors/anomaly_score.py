"""Anomaly scores: one finite number for each input, from a detector of outputs or of inputs."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from advkit.core import checks
from advkit.core.protocols import Detector, InputDetector
from advkit.detectors.features import Floats


def reads_inputs(detector: object) -> bool:
    """Return True if a detector scores inputs and labels, and False if it scores outputs."""
    return bool(getattr(detector, "reads_inputs", False))


def check_detector(detector: object) -> None:
    """Raise unless `detector` is an object with an `anomaly_score` that a guard can call.

    Raises:
        TypeError: it is a class, lacks the method, or its method takes other arguments than
            `reads_inputs` implies.
    """
    checks.detector("detector", detector)
    arguments = ("x", "labels") if reads_inputs(detector) else ("outputs",)
    try:
        signature = inspect.signature(detector.anomaly_score)  # type: ignore[attr-defined]
    except (TypeError, ValueError):  # a callable without a readable signature, e.g. compiled
        return
    try:
        signature.bind(*arguments)
        fits = reads_inputs(detector) or "labels" not in signature.parameters
    except TypeError:
        fits = False
    if not fits:
        other = "outputs" if reads_inputs(detector) else "inputs and labels"
        raise TypeError(
            f"`detector` must have anomaly_score({', '.join(arguments)}), got {detector!r} with "
            f"anomaly_score{signature}. Set `reads_inputs = {not reads_inputs(detector)}` if it "
            f"scores {other}."
        )


def check_threshold(threshold: float) -> None:
    """Raise unless `threshold` is a finite number."""
    checks.number("threshold", threshold)
    if not math.isfinite(threshold):
        raise ValueError(f"`threshold` must be finite, got {threshold}.")


def anomaly_score_of(
    detector: Detector | InputDetector, outputs: Tensor, labels: Tensor, x: Tensor
) -> Floats:
    """Return the anomaly score of each input of a request, float64 `(n,)`.

    The detector gets copies, which it may write to.

    Args:
        detector: a detector of outputs or of inputs.
        outputs: the model's outputs `(n, classes)`.
        labels: the model's labels, int64 `(n,)`.
        x: the inputs `(n, *features)`.

    Raises:
        RuntimeError: the detector raised.
        TypeError: it returned something other than numbers.
        ValueError: it did not return one finite number for each input.
    """
    if not len(x):
        return np.zeros(0)  # scikit-learn estimators reject an empty batch
    name = type(detector).__name__
    try:
        # asanyarray: a masked array stays masked, so that it can be refused
        anomaly_score = np.asanyarray(_unchecked_score(detector, outputs, labels, x))
    except Exception as error:
        raise RuntimeError(f"{name} failed, so no label is returned: {error}") from error
    return checked_anomaly_score(name, anomaly_score, len(x))


def checked_anomaly_score(name: str, returned: npt.ArrayLike, n: int) -> Floats:
    """Return a copy, float64 `(n,)`, of what the detector `name` returned for `n` inputs.

    Raises:
        TypeError: the detector returned something other than numbers.
        ValueError: it did not return one finite number for each input.
    """
    returned = np.asanyarray(returned)
    if returned.dtype.kind not in "fiu":
        raise TypeError(f"`{name}` must return anomaly scores as numbers, got {returned.dtype}.")
    checks.unmasked(f"the anomaly score of {name}", returned)
    with np.errstate(over="ignore"):  # values beyond the range of float64 become infinite
        anomaly_score: Floats = np.array(returned, dtype=np.float64)
    if n == 1 and anomaly_score.shape == ():  # a detector that squeezes drops the axis
        anomaly_score = anomaly_score[None]
    if anomaly_score.shape != (n,):
        raise ValueError(
            f"`{name}` must return anomaly scores of shape ({n},), one for each input, "
            f"got {anomaly_score.shape}."
        )
    bad = torch.from_numpy(~np.isfinite(anomaly_score))
    if bad.any():
        raise ValueError(
            f"`{name}` must return finite anomaly scores, got NaN or infinity "
            f"({checks.samples(bad)})."
        )
    return anomaly_score


def _unchecked_score(detector: Any, outputs: Tensor, labels: Tensor, x: Tensor) -> npt.ArrayLike:
    """Return the detector's scores, unchecked."""
    if not reads_inputs(detector):
        return detector.anomaly_score(np.array(outputs.cpu().numpy()))  # type: ignore[no-any-return]
    with torch.no_grad():
        scores = detector.anomaly_score(x.clone(), labels.clone())
    return scores.detach().cpu().numpy() if isinstance(scores, Tensor) else scores
