"""Suspicion: one finite number for each input, from a detector of outputs or of inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from advkit.core import checks
from advkit.core.protocols import Detector, InputDetector
from advkit.detectors.features import Floats


def looks_at_inputs(detector: object) -> bool:
    """Return True if a detector wants the inputs, and not the model's outputs."""
    return callable(getattr(detector, "risk", None))


def check_detector(detector: object) -> None:
    """Raise unless `detector` is an object with `suspicion` or `risk`; a class is refused."""
    asked = looks_at_inputs(detector) or callable(getattr(detector, "suspicion", None))
    if isinstance(detector, type) or not asked:
        raise TypeError(
            f"detector must have suspicion(outputs) or risk(x, labels), got {detector!r}"
        )


def suspicion_of(
    detector: Detector | InputDetector, outputs: Tensor, labels: Tensor, x: Tensor
) -> Floats:
    """Return the suspicion `(n,)`, float64, that a detector has of a request.

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
        found = np.asanyarray(_found(detector, outputs, labels, x))  # a masked array stays one
    except Exception as error:
        raise RuntimeError(f"{name} failed, so nothing is answered: {error}") from error
    return checked_suspicion(name, found, len(x))


def checked_suspicion(name: str, found: npt.ArrayLike, n: int) -> Floats:
    """Return a copy, float64 `(n,)`, of what the detector `name` found for `n` inputs.

    Raises:
        TypeError: that is something other than numbers.
        ValueError: that is not one finite number for each input.
    """
    found = np.asanyarray(found)
    if found.dtype.kind not in "fiu":
        raise TypeError(f"{name} must give suspicion as numbers, gave {found.dtype}")
    checks.unmasked(f"the suspicion of {name}", found)
    with np.errstate(over="ignore"):  # what float64 cannot hold becomes infinite
        suspicion: Floats = np.array(found, dtype=np.float64)
    if n == 1 and suspicion.shape == ():
        suspicion = suspicion[None]  # a detector that squeezes drops the axis of a single input
    if suspicion.shape != (n,):
        raise ValueError(
            f"{name} must give suspicion of shape ({n},), one for each input, "
            f"gave {suspicion.shape}"
        )
    bad = torch.from_numpy(~np.isfinite(suspicion))
    if bad.any():
        raise ValueError(f"{name} gave NaN or infinite suspicion for sample {checks.indices(bad)}")
    return suspicion


def _found(detector: Any, outputs: Tensor, labels: Tensor, x: Tensor) -> npt.ArrayLike:
    """Return what the detector gives, unchecked."""
    if not looks_at_inputs(detector):
        return detector.suspicion(np.array(outputs.cpu().numpy()))  # type: ignore[no-any-return]
    with torch.no_grad():
        risk = detector.risk(x.clone(), labels.clone())
    return risk.detach().cpu().numpy() if isinstance(risk, Tensor) else risk
