"""Fitted estimators that are plain differentiable functions, as layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
_PRECISION = 1e-6  # float32, in which some estimators were fitted, leaves that much
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda h: h,
    "logistic": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
}


@dataclass(frozen=True, eq=False)
class Layers:
    """Affine layers in float64 with an activation between them; one layer is a linear model."""

    weights: tuple[Tensor, ...]  # (inputs, outputs) each
    biases: tuple[Tensor, ...]  # (outputs,)
    activation: str = "identity"
    scale: Tensor | float = 1.0  # (features,), of what comes before the first layer
    shift: Tensor | float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Logits `(n, classes)`; a single output z becomes (0, z)."""
        h = x.flatten(1).double() * _on(self.scale, x) + _on(self.shift, x)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = h if i == 0 else _ACTIVATIONS[self.activation](h)
            h = h @ weight.to(x.device) + bias.to(x.device)
        return torch.cat([torch.zeros_like(h), h], dim=1) if h.shape[1] == 1 else h


def _on(value: Tensor | float, x: Tensor) -> Tensor | float:
    return value.to(x.device) if isinstance(value, Tensor) else value


def as_layers(
    estimator: Any, points: Array, y: Array, bounds: tuple[float, float]
) -> Layers | None:
    """The estimator as layers, if they say the same as it does.

    Args:
        estimator: fitted.
        points: within the bounds, `(m, features)`.
        y: what it predicts there, as indices `(m,)`.
        bounds: of the features.
    """
    from sklearn.pipeline import Pipeline

    steps = estimator.steps if isinstance(estimator, Pipeline) else [("", estimator)]
    layers = _linear(steps[-1][1]) or _perceptron(steps[-1][1])
    if layers is not None:
        layers = _behind([step for _, step in steps[:-1]], layers, points, bounds)
    return layers if layers is not None and _say_the_same(layers, estimator, points, y) else None


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


def _behind(
    steps: list[Any], layers: Layers, points: Array, bounds: tuple[float, float]
) -> Layers | None:
    """The layers behind the steps of a pipeline, if these shift and scale each feature.

    The ends of the bounds give shift and scale; the points show whether that is all they do.
    """
    if not steps:
        return layers
    lower, upper = bounds
    ends = np.stack([np.full(points.shape[1], end, dtype=np.float64) for end in bounds])
    images = _through(steps, np.concatenate([ends, points]))
    if images is None:
        return None
    scale = (images[1] - images[0]) / (upper - lower)
    shift = images[0] - lower * scale
    if not _close(points * scale + shift, images[2:]):
        return None
    return replace(layers, scale=_double(scale), shift=_double(shift))


def _through(steps: list[Any], points: Array) -> Array | None:
    """What a pipeline's steps make of points; `None` unless it is of the same shape."""
    out: Any = points
    for step in steps:
        if step is not None and step != "passthrough":
            out = step.transform(out)
    same = isinstance(out, np.ndarray) and out.shape == points.shape
    return out.astype(np.float64) if same else None


def _say_the_same(layers: Layers, estimator: Any, points: Array, y: Array) -> bool:
    """Whether the layers give the estimator's labels and decision values, or its probabilities."""
    classes = len(estimator.classes_)
    if layers.weights[0].shape[0] != points.shape[1] or compares_pairs(estimator, classes):
        return False
    claimed = layers(torch.from_numpy(points))
    if (claimed.argmax(1).numpy() != y).any():
        return False
    if hasattr(estimator, "decision_function"):
        return _close(claimed.numpy(), columns(estimator.decision_function(points)))
    if hasattr(estimator, "predict_proba"):
        return _close(claimed.softmax(1).numpy(), columns(estimator.predict_proba(points)))
    return False


def _close(claimed: Array, found: Array) -> bool:
    if claimed.shape != found.shape:
        return False
    size = 1 + np.abs(found).max(0)
    return bool((np.abs(claimed - found) <= _PRECISION * size).all())


def compares_pairs(estimator: Any, classes: int) -> bool:
    """Whether decision values are those of pairs; of three classes there are three, as of one."""
    parameters = estimator.get_params() if hasattr(estimator, "get_params") else {}
    return classes > 2 and any(
        name.split("__")[-1] == "decision_function_shape" and value == "ovo"
        for name, value in parameters.items()
    )


def columns(scores: Any) -> Array:
    """Scores `(n, classes)`, float64; a single one z for each sample becomes (0, z)."""
    array = np.array(scores, dtype=np.float64, order="C")
    single = array.ndim == 1 or array.shape[1:] == (1,)
    z = array.reshape(len(array), -1)
    return np.concatenate([np.zeros_like(z), z], axis=1) if single else array
