"""A guard as attacks that know about it see it: its answers, its model and its detectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from advkit.attacks.engine.black_box import ByLabels
from advkit.core.tensors import at_least_float32
from advkit.models import DifferentiableClassifier, as_differentiable


class Guarded(ByLabels):
    """A guard, which judges at the end, and what is behind it: its model and its detector.

    Args:
        guard: a classifier; what is no guard has no parts that could raise an alarm.
        wanted_by: the attack, for what an error says.
        asks: what it asks of a detector.

    Attributes:
        inner: the model, which has logits.
        detectors: with their thresholds; none without a guard.

    Raises:
        TypeError: there are no logits, or a detector does not answer what is asked.
    """

    def __init__(self, guard: Any, wanted_by: str, asks: tuple[str, ...]) -> None:
        super().__init__(guard)
        self.detectors: list[tuple[Any, float]] = []
        inner, guards = behind_guards(guard)
        for each in guards:
            _check_asked(each.detector, wanted_by, asks)
            self.detectors.append((each.detector, each.threshold))
        self.inner: DifferentiableClassifier = as_differentiable(inner, wanted_by)

    def margin_over_threshold(self, x: Tensor, labels: Tensor) -> Tensor:
        """How far each part is above its limit if the answers are `labels`, `(n, parts)`."""
        found = [
            d.margin_over_threshold(_given(x), labels.clone(), limit) for d, limit in self.detectors
        ]
        return _beside(x, found, "margin_over_threshold")

    def features(self, x: Tensor) -> Tensor:
        """What the parts look at, `(n, width)`."""
        return _beside(x, [d.features(_given(x)) for d, _ in self.detectors], "features")


def behind_guards(guard: Any) -> tuple[Any, list[Any]]:
    """Return what has the logits behind a classifier, and the guards on the way to it."""
    guards = []
    while not callable(getattr(guard, "logits", None)) and hasattr(guard, "model"):
        if hasattr(guard, "detector"):
            guards.append(guard)
        guard = guard.model  # perhaps a counter's, whose guard is next
    return guard, guards


def _check_asked(detector: object, wanted_by: str, asks: tuple[str, ...]) -> None:
    missing = [name for name in asks if not callable(getattr(detector, name, None))]
    if missing:
        raise TypeError(
            f"{wanted_by} needs a detector of inputs that shows its parts, so a "
            f"DifferentiableDetector; {type(detector).__name__} has no {missing[0]}. "
            "Adaptive is for detectors of outputs"
        )


def _given(x: Tensor) -> Tensor:
    """Return a copy of `x`, which a detector may write to."""
    return x.clone()


def _beside(x: Tensor, found: list[Tensor], name: str) -> Tensor:
    """Rows `(n, width)` side by side; of no width where there are none."""
    if len(x) == 1:  # a detector that squeezes drops axes of a single sample
        found = [rows.reshape(1, -1) if rows.ndim < 2 else rows for rows in found]
    for rows in found:
        if rows.ndim != 2 or len(rows) != len(x):
            raise ValueError(
                f"the detector must give {name} of shape ({len(x)}, width), a row for each input, "
                f"gave {tuple(rows.shape)}"
            )
    return torch.cat([at_least_float32(rows) for rows in (x.new_zeros(len(x), 0), *found)], 1)
