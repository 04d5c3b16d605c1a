"""Anomaly scores: one finite number for each input, from a detector of outputs or of inputs."""

from __future__ import annotations

import inspect
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
            `reads_inputs` says.
    """
    checks.detector("detector", detector)
    taken = ("x", "labels") if reads_inputs(detector) else ("outputs",)
    try:
        inspect.signature(detector.anomaly_score).bind(*taken)  # type: ignore[attr-defined]
    except TypeError as error:
        raise TypeError(
            f"`detector` must have anomaly_score({', '.join(taken)}), got {detector!r}. Set "
            f"`reads_inputs` to {not reads_inputs(detector)} if it scores "
            f"{'outputs' if reads_inputs(detector) else 'inputs'}."
        ) from error
    except ValueError:  # a callable without a signature, such as a compiled one
        return


def anomaly_score_of(
    detector: Detector | InputDetector, outputs: Tensor, labels: Tensor, x: Tensor
) -> Floats:
    """Return the anomaly score of each input of a request, float64 `(n,)`.

    The detector gets copies, which it may write to.

    Args:
        detector: looks at the outputs or at the inputs.
        outputs: `(n, classes)`, what the model gave.
        labels: int64 `(n,)`, the model's.
        x: the inputs `(n, *features)`.

    Raises:
        RuntimeError: the detector raised.
        TypeError: it returned something other than numbers.
        ValueError: it did not return one finite number for each input.
    """
    if not len(x):
        return np.zeros(0)  # estimators refuse an empty batch
    name = type(detector).__name__
    try:
        found = np.asanyarray(
            _unchecked_score(detector, outputs, labels, x)
        )  # a masked array stays one
    except Exception as error:
        raise RuntimeError(f"{name} failed, so nothing is answered: {error}") from error
    return checked_anomaly_score(name, found, len(x))


def checked_anomaly_score(name: str, found: npt.ArrayLike, n: int) -> Floats:
    """Return a copy, float64 `(n,)`, of what the detector `name` found for `n` inputs.

    Raises:
        TypeError: that is something other than numbers.
        ValueError: that is not one finite number for each input.
    """
    found = np.asanyarray(found)
    if found.dtype.kind not in "fiu":
        raise TypeError(f"{name} must return anomaly scores as numbers, got {found.dtype}")
    checks.unmasked(f"the anomaly score of {name}", found)
    with np.errstate(over="ignore"):  # what float64 cannot hold becomes infinite
        anomaly_score: Floats = np.array(found, dtype=np.float64)
    if n == 1 and anomaly_score.shape == ():
        anomaly_score = anomaly_score[
            None
        ]  # a detector that squeezes drops the axis of a single input
    if anomaly_score.shape != (n,):
        raise ValueError(
            f"{name} must return anomaly scores of shape ({n},), one for each input, "
            f"got {anomaly_score.shape}"
        )
    bad = torch.from_numpy(~np.isfinite(anomaly_score))
    if bad.any():
        raise ValueError(
            f"{name} returned NaN or infinite anomaly scores for sample {checks.indices(bad)}"
        )
    return anomaly_score


def _unchecked_score(detector: Any, outputs: Tensor, labels: Tensor, x: Tensor) -> npt.ArrayLike:
    """Return what the detector gives, unchecked."""
    if not reads_inputs(detector):
        return detector.anomaly_score(np.array(outputs.cpu().numpy()))  # type: ignore[no-any-return]
    with torch.no_grad():
        found = detector.anomaly_score(x.clone(), labels.clone())
    return found.detach().cpu().numpy() if isinstance(found, Tensor) else found
