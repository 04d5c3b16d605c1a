"""Conversion of modules and estimators to classifiers."""

from __future__ import annotations

import re
import textwrap

from torch import nn
from typing_extensions import TypeIs

from advkit.core.bounds import checked_bounds
from advkit.models.protocols import Classifier, DifferentiableClassifier
from advkit.models.sklearn import SklearnClassifier
from advkit.models.torch import TorchClassifier

_MAX_NAME_LENGTH = 40  # of a name that `short_name` makes, in characters


def as_classifier(obj: object) -> Classifier:
    """Return `obj` itself if it is a classifier, otherwise wrap it in the classifier that fits.

    Args:
        obj: a classifier, a bare `nn.Module` with inputs in [0, 1] and logits as output, or a
            fitted scikit-learn estimator with inputs in [0, 1].

    Raises:
        TypeError: `obj` is none of these.
        ValueError: `obj` is an estimator that is not fitted, or one whose classes are integers
            other than 0, 1, 2, ...: these need a `SklearnClassifier` with the argument `labels`.

    Example:
        >>> import torch, advkit
        >>> advkit.as_classifier(torch.nn.Linear(4, 3))
        TorchClassifier(Linear, bounds=(0, 1))
    """
    if callable(getattr(obj, "predict", None)) and hasattr(obj, "bounds"):
        checked_bounds(obj.bounds)
        return obj  # type: ignore[return-value]  # num_classes may be known only after a first pass
    if isinstance(obj, nn.Module):
        return TorchClassifier(obj)
    if callable(getattr(obj, "predict", None)) and callable(getattr(obj, "get_params", None)):
        return SklearnClassifier(obj)
    raise TypeError(
        "`model` must be a torch.nn.Module, a fitted scikit-learn estimator or a classifier "
        f"(predict, num_classes, bounds), got {type(obj).__name__}. Wrap a function in "
        "CallableClassifier."
    )


def as_differentiable(obj: object, needed_by: str) -> DifferentiableClassifier:
    """Return `obj` as a classifier with gradients, for the attack named `needed_by`.

    Raises:
        TypeError: `obj` has no differentiable logits; the error names its kind and what to use
            instead.
    """
    model = as_classifier(obj)
    if has_gradients(model):
        return model
    raise TypeError(
        "`model` must have gradients (a DifferentiableClassifier, with logits(x)) for "
        f"{needed_by}, got {describe(model)}, which has none. Use Square (scores) or "
        "HopSkipJump (labels), attack a differentiable surrogate with "
        "Transfer(attack=..., surrogate=...), or wrap a torch module in TorchClassifier."
    )


def has_gradients(model: Classifier) -> TypeIs[DifferentiableClassifier]:
    """Return True if `model` has differentiable logits."""
    return callable(getattr(model, "logits", None))


def describe(model: Classifier) -> str:
    """Return the name of a model without gradients and its kind, for errors."""
    name = type(model).__name__
    inner = type(model.estimator).__name__ if isinstance(model, SklearnClassifier) else ""
    kind = "ScoreClassifier" if callable(getattr(model, "scores", None)) else "Classifier"
    return f"{name}({inner}), a {kind}" if inner else f"{name}, a {kind}"


def short_name(model: object) -> str:
    """Return a short name for a model that the caller has not named."""
    wrapped = as_classifier(model) is not model
    if wrapped or type(model).__repr__ is object.__repr__:
        return type(model).__name__
    without_bounds = re.sub(r", bounds=\([^()]*\)", "", repr(model))
    return textwrap.shorten(without_bounds, _MAX_NAME_LENGTH, placeholder="...")
