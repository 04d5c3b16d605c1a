"""Conversion of fitted estimators that are plain differentiable functions to layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
_PRECISION = 1e-6  # rounding error of estimators that were fitted in float32
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda h: h,
    "logistic": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
}


@dataclass(frozen=True, eq=False)
class Layers:
    """Affine layers in float64 with an activation between them. One layer is a linear model."""

    weights: tuple[Tensor, ...]  # (inputs, outputs) each
    biases: tuple[Tensor, ...]  # (outputs,)
    activation: str = "identity"
    scale: Tensor | float = 1.0  # (features,), applied before the first layer
    shift: Tensor | float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits `(n, classes)`; a single output z becomes (0, z)."""
        h = x.flatten(1).double() * _to_device_of(x, self.scale) + _to_device_of(x, self.shift)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = h if i == 0 else _ACTIVATIONS[self.activation](h)
            h = h @ weight.to(x.device) + bias.to(x.device)
        return torch.cat([torch.zeros_like(h), h], dim=1) if h.shape[1] == 1 else h


def _to_device_of(x: Tensor, value: Tensor | float) -> Tensor | float:
    return value.to(x.device) if isinstance(value, Tensor) else value


def as_layers(
    estimator: Any, points: Array, y: Array, bounds: tuple[float, float]
) -> Layers | None:
    """Return an estimator as layers; `None` if it has none or their outputs differ from its own.

    Args:
        estimator: fitted estimator.
        points: points within the bounds, `(m, features)`, at which the outputs are compared.
        y: the estimator's predictions there, as indices `(m,)`.
        bounds: bounds of the features.
    """
    from sklearn.pipeline import Pipeline

    steps = estimator.steps if isinstance(estimator, Pipeline) else [("", estimator)]
    layers = _linear(steps[-1][1]) or _perceptron(steps[-1][1])
    if layers is not None:
        layers = _after_steps([step for _, step in steps[:-1]], layers, points, bounds)
    return layers if layers is not None and _agrees(layers, estimator, points, y) else None


def _linear(estimator: Any) -> Layers | None:
    coef, intercept = getattr(estimator, "coef_", None), getattr(estimator, "intercept_", None)
    if not isinstance(coef, np.ndarray) or coef.ndim not in (1, 2) or intercept is None:
        return None
    coef = np.atleast_2d(coef)
    bias = np.broadcast_to(np.ravel(intercept), (len(coef),))
    return Layers((_double(coef.T),), (_double(bias),))


def _perceptron(estimator: Any) -> Layers | None:
    activation = getattr(estimator, "activation", None)
    if not hasattr(estimator, "coefs_") or activation not in _ACTIVATIONS:
        return None
    weights, biases = map(_double, estimator.coefs_), map(_double, estimator.intercepts_)
    return Layers(tuple(weights), tuple(biases), activation)


def _double(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64, order="C"))


def _after_steps(
    steps: list[Any], layers: Layers, points: Array, bounds: tuple[float, float]
) -> Layers | None:
    """Return the layers preceded by the steps of a pipeline; `None` if the steps are not affine.

    The steps must shift and scale each feature. Their outputs at the ends of the bounds determine
    shift and scale; those at the points show whether the steps do anything else.
    """
    if not steps:
        return layers
    lower, upper = bounds
    ends = np.stack([np.full(points.shape[1], end, dtype=np.float64) for end in bounds])
    transformed = _transform(steps, np.concatenate([ends, points]))
    if transformed is None:
        return None
    scale = (transformed[1] - transformed[0]) / (upper - lower)
    shift = transformed[0] - lower * scale
    if not _close(points * scale + shift, transformed[2:]):
        return None
    return replace(layers, scale=_double(scale), shift=_double(shift))


def _transform(steps: list[Any], points: Array) -> Array | None:
    """Apply a pipeline's steps to points; return `None` if they change the shape."""
    out: Any = points
    for step in steps:
        if step is not None and step != "passthrough":
            out = step.transform(out)
    same = isinstance(out, np.ndarray) and out.shape == points.shape
    return out.astype(np.float64) if same else None


def _agrees(layers: Layers, estimator: Any, points: Array, y: Array) -> bool:
    """Return True if the layers give the estimator's labels and decision values.

    Without decision values, the softmax of the layers must give its probabilities.
    """
    classes = len(estimator.classes_)
    if layers.weights[0].shape[0] != points.shape[1] or is_one_vs_one(estimator, classes):
        return False
    logits = layers(torch.from_numpy(points))
    if (logits.argmax(1).numpy() != y).any():
        return False
    if hasattr(estimator, "decision_function"):
        return _close(logits.numpy(), to_columns(estimator.decision_function(points)))
    if hasattr(estimator, "predict_proba"):
        return _close(logits.softmax(1).numpy(), to_columns(estimator.predict_proba(points)))
    return False


def _close(actual: Array, expected: Array) -> bool:
    if actual.shape != expected.shape:
        return False
    size = 1 + np.abs(expected).max(0)
    return bool((np.abs(actual - expected) <= _PRECISION * size).all())


def is_one_vs_one(estimator: Any, classes: int) -> bool:
    """Return True if decision values belong to pairs of classes instead of single classes.

    The shape does not show it for three classes, which have three pairs.
    """
    parameters = estimator.get_params() if hasattr(estimator, "get_params") else {}
    return classes > 2 and any(
        name.split("__")[-1] == "decision_function_shape" and value == "ovo"
        for name, value in parameters.items()
    )


def to_columns(scores: Any) -> Array:
    """Convert scores to float64 `(n, classes)`; a single score z for each sample becomes (0, z)."""
    array = np.array(scores, dtype=np.float64, order="C")
    single = array.ndim == 1 or array.shape[1:] == (1,)
    z = array.reshape(len(array), -1)
    return np.concatenate([np.zeros_like(z), z], axis=1) if single else array
