"""Whatever a user passes as a model, as a classifier."""

from __future__ import annotations

from torch import nn

from advkit.models.protocols import Classifier, DifferentiableClassifier
from advkit.models.torch import TorchClassifier


def as_classifier(obj: object) -> Classifier:
    """`obj` itself if it is a classifier, else in the wrapper that fits.

    Args:
        obj: a classifier, or a bare `nn.Module` with inputs in [0, 1] and logits as output.

    Raises:
        TypeError: neither.

    Example:
        >>> import torch, advkit
        >>> advkit.as_classifier(torch.nn.Linear(4, 3))
        TorchClassifier(Linear, bounds=(0, 1))
    """
    if callable(getattr(obj, "predict", None)) and hasattr(obj, "bounds"):
        return obj  # type: ignore[return-value]  # num_classes may be known only after a first pass
    if isinstance(obj, nn.Module):
        return TorchClassifier(obj)
    raise TypeError(
        "model must be a torch.nn.Module or a classifier (predict, num_classes, bounds), "
        f"got {type(obj).__name__}"
    )


def as_differentiable(obj: object, wanted_by: str) -> DifferentiableClassifier:
    """`obj` as a classifier with gradients, for the attack named `wanted_by`.

    Raises:
        TypeError: `obj` has no differentiable logits; says what it is and what to use instead.
    """
    model = as_classifier(obj)
    if callable(getattr(model, "logits", None)):
        return model  # type: ignore[return-value]
    kind = "ScoreClassifier" if callable(getattr(model, "scores", None)) else "Classifier"
    raise TypeError(
        f"{wanted_by} needs gradients, so a DifferentiableClassifier (logits(x)); "
        f"{type(model).__name__} is a {kind}. Wrap the torch module in TorchClassifier, or attack "
        "a differentiable substitute and transfer what it finds"
    )
