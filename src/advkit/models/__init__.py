"""Layer 1: one face for every model."""

from advkit.models.callable import CallableClassifier
from advkit.models.convert import as_classifier, as_differentiable
from advkit.models.preprocessing import Normalize
from advkit.models.protocols import (
    Bounds,
    Classifier,
    DifferentiableClassifier,
    ScoreClassifier,
    hold,
)
from advkit.models.sklearn import SklearnClassifier
from advkit.models.torch import TorchClassifier

__all__ = [
    "Bounds",
    "CallableClassifier",
    "Classifier",
    "DifferentiableClassifier",
    "Normalize",
    "ScoreClassifier",
    "SklearnClassifier",
    "TorchClassifier",
    "as_classifier",
    "as_differentiable",
    "hold",
]
