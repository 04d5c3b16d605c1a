"""Outputs of a guarded model, checked before a detector scores them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from advkit.core import checks
from advkit.core.tensors import at_least_float32
from advkit.detectors.features import Outputs


def check_has_outputs(model: Any, outputs: Outputs) -> None:
    """Raise unless `model` has the method that `outputs` names."""
    if not callable(getattr(model, outputs, None)):
        raise TypeError(f"`model` must have {outputs}(x) for outputs={outputs!r}, got {model!r}.")


def outputs_of(model: Any, outputs: Outputs, x: Tensor) -> Tensor:
    """Return a copy of the model's outputs `(n, classes)` for `x`, in float32 or float64.

    Args:
        model: a classifier.
        outputs: the name of its method.
        x: inputs `(n, *features)`.

    Raises:
        ValueError: the outputs are not finite, or have another shape.
    """
    with torch.no_grad():
        found = at_least_float32(getattr(model, outputs)(x).detach()).clone()
    if found.ndim != 2 or len(found) != len(x):
        raise ValueError(
            f"`model` must return {outputs} of shape ({len(x)}, classes), got {tuple(found.shape)}."
        )
    bad = ~found.isfinite().all(1)
    if bad.any():
        raise ValueError(
            f"`model` must return finite {outputs}, got NaN or infinity ({checks.samples(bad)})."
        )
    return found
