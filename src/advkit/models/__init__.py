"""Layer 1: a common interface for all models."""

from advkit.core.bounds import Bounds
from advkit.models.callable import CallableClassifier
from advkit.models.convert import as_classifier, as_differentiable, has_gradients
from advkit.models.ensemble import Ensemble
from advkit.models.onnx import OnnxClassifier
from advkit.models.preprocessing import Normalize
from advkit.models.protocols import (
    REJECTED,
    Classifier,
    DifferentiableClassifier,
    ScoreClassifier,
    evaluating,
    may_interrupt,
)
from advkit.models.sklearn import SklearnClassifier
from advkit.models.torch import TorchClassifier
from advkit.models.wrappers import Expectation, QueryCounter, StraightThrough

__all__ = [
    "REJECTED",
    "Bounds",
    "CallableClassifier",
    "Classifier",
    "DifferentiableClassifier",
    "Ensemble",
    "Expectation",
    "Normalize",
    "OnnxClassifier",
    "QueryCounter",
    "ScoreClassifier",
    "SklearnClassifier",
    "StraightThrough",
    "TorchClassifier",
    "as_classifier",
    "as_differentiable",
    "evaluating",
    "has_gradients",
    "may_interrupt",
]
