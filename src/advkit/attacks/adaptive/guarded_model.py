"""White-box access to a guard: its labels, its model and its detectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from advkit.attacks.engine.black_box import ByLabels
from advkit.core.tensors import at_least_float32
from advkit.models import DifferentiableClassifier, as_differentiable


class Guarded(ByLabels):
    """A guard, whose labels decide about success, with the model and the detectors inside it.

    Args:
        guard: a classifier; one that is not a guard has no detectors.
        needed_by: name of the attack, for the errors.
        methods: names of the methods that each detector must have.

    Attributes:
        inner: the model inside the guard, which has logits.
        detectors: pairs of a detector and its threshold; empty without a guard.

    Raises:
        TypeError: the model has no logits, or a detector does not have one of the methods.
    """

    def __init__(self, guard: Any, needed_by: str, methods: tuple[str, ...]) -> None:
        super().__init__(guard)
        self.detectors: list[tuple[Any, float]] = []
        inner, guards = unwrap_guards(guard)
        for each in guards:
            _check_methods(each.detector, needed_by, methods)
            self.detectors.append((each.detector, each.threshold))
        self.inner: DifferentiableClassifier = as_differentiable(inner, needed_by)

    def margin_over_threshold(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the margin of each part of the detectors over its threshold, `(n, parts)`.

        Args:
            x: inputs, `(n, *features)`.
            labels: labels that the model would return for them, `(n,)`.
        """
        # copies, because a detector may write to its arguments
        margins = [
            detector.margin_over_threshold(x.clone(), labels.clone(), threshold)
            for detector, threshold in self.detectors
        ]
        return _concatenate(x, margins, "margin_over_threshold")

    def features(self, x: Tensor) -> Tensor:
        """Return the features of all detectors, `(n, width)`."""
        features = [detector.features(x.clone()) for detector, _ in self.detectors]
        return _concatenate(x, features, "features")


def unwrap_guards(model: Any) -> tuple[Any, list[Any]]:
    """Return the model with logits inside a classifier, and the guards around it."""
    guards = []
    while not callable(getattr(model, "logits", None)) and hasattr(model, "model"):
        if hasattr(model, "detector"):
            guards.append(model)
        model = model.model  # also inside a query counter, which may wrap a guard
    return model, guards


def _check_methods(detector: object, needed_by: str, methods: tuple[str, ...]) -> None:
    missing = [name for name in methods if not callable(getattr(detector, name, None))]
    if missing:
        raise TypeError(
            f"`model` must have a DifferentiableDetector of inputs for {needed_by}, got "
            f"{type(detector).__name__}, which has no method {missing[0]}. Use Adaptive for "
            "detectors of outputs."
        )


def _concatenate(x: Tensor, parts: list[Tensor], name: str) -> Tensor:
    """Return tensors `(n, width)` side by side, at least in float32; an empty list has width 0."""
    if len(x) == 1:  # a detector that squeezes drops axes of a single sample
        parts = [part.reshape(1, -1) if part.ndim < 2 else part for part in parts]
    for part in parts:
        if part.ndim != 2 or len(part) != len(x):
            raise ValueError(
                f"`{name}` of the detector must return shape ({len(x)}, width), a row for each "
                f"input, got {tuple(part.shape)}."
            )
    return torch.cat([at_least_float32(part) for part in (x.new_zeros(len(x), 0), *parts)], 1)
