"""Whatever a user passes as a model, as a classifier."""

from __future__ import annotations

import re
import textwrap

from torch import nn
from typing_extensions import TypeIs

from advkit.models.protocols import Classifier, DifferentiableClassifier
from advkit.models.sklearn import SklearnClassifier
from advkit.models.torch import TorchClassifier

_LONGEST = 40  # of a name that is made here, in characters


def as_classifier(obj: object) -> Classifier:
    """`obj` itself if it is a classifier, else in the wrapper that fits.

    Args:
        obj: a classifier, a bare `nn.Module` with inputs in [0, 1] and logits as output, or a
            fitted scikit-learn estimator with inputs in [0, 1].

    Raises:
        TypeError: none of them.
        ValueError: an estimator that is not fitted, or whose classes are integers other than 0, 1,
            2, ...: `SklearnClassifier` has to be told what labels are.

    Example:
        >>> import torch, advkit
        >>> advkit.as_classifier(torch.nn.Linear(4, 3))
        TorchClassifier(Linear, bounds=(0, 1))
    """
    if callable(getattr(obj, "predict", None)) and hasattr(obj, "bounds"):
        return obj  # type: ignore[return-value]  # num_classes may be known only after a first pass
    if isinstance(obj, nn.Module):
        return TorchClassifier(obj)
    if callable(getattr(obj, "predict", None)) and callable(getattr(obj, "get_params", None)):
        return SklearnClassifier(obj)
    raise TypeError(
        "`model` must be a torch.nn.Module, a fitted scikit-learn estimator or a classifier "
        f"(predict, num_classes, bounds), got {type(obj).__name__}; a function goes into "
        "CallableClassifier"
    )


def as_differentiable(obj: object, wanted_by: str) -> DifferentiableClassifier:
    """`obj` as a classifier with gradients, for the attack named `wanted_by`.

    Raises:
        TypeError: `obj` has no differentiable logits; says what it is and what to use instead.
    """
    model = as_classifier(obj)
    if has_gradients(model):
        return model
    kind = "ScoreClassifier" if callable(getattr(model, "scores", None)) else "Classifier"
    raise TypeError(
        f"{wanted_by} needs gradients, so a DifferentiableClassifier (logits(x)); "
        f"{_named(model)} is a {kind}. Use Square (scores) or HopSkipJump (labels), which need "
        "none, or Transfer(attack=..., surrogate=...) from a differentiable model; a torch module "
        "goes into TorchClassifier"
    )


def has_gradients(model: Classifier) -> TypeIs[DifferentiableClassifier]:
    """Whether `model` has logits to differentiate."""
    return callable(getattr(model, "logits", None))


def _named(model: Classifier) -> str:
    name = type(model).__name__
    inner = type(model.estimator).__name__ if isinstance(model, SklearnClassifier) else ""
    return f"{name}({inner})" if inner else name


def short_name(model: object) -> str:
    """What a model is called whom nobody gave a name."""
    wrapped = as_classifier(model) is not model
    if wrapped or type(model).__repr__ is object.__repr__:
        return type(model).__name__
    without_bounds = re.sub(r", bounds=\([^()]*\)", "", repr(model))
    return textwrap.shorten(without_bounds, _LONGEST, placeholder="...")
