"""advkit: adversarial attacks in vectorised PyTorch, and evaluations to believe."""

from advkit import attacks, data, defenses, detectors, eval, models
from advkit.core.results import (
    AttackInterrupted,
    InconclusiveWarning,
    QueryBudgetExceeded,
    ServiceError,
)
from advkit.models import (
    Bounds,
    CallableClassifier,
    Classifier,
    DifferentiableClassifier,
    Ensemble,
    Expectation,
    Normalize,
    OnnxClassifier,
    QueryCounter,
    ScoreClassifier,
    SklearnClassifier,
    StraightThrough,
    TorchClassifier,
    as_classifier,
)

__version__ = "0.1.0"

__all__ = [
    "AttackInterrupted",
    "Bounds",
    "CallableClassifier",
    "Classifier",
    "DifferentiableClassifier",
    "Ensemble",
    "Expectation",
    "InconclusiveWarning",
    "Normalize",
    "OnnxClassifier",
    "QueryBudgetExceeded",
    "QueryCounter",
    "ScoreClassifier",
    "ServiceError",
    "SklearnClassifier",
    "StraightThrough",
    "TorchClassifier",
    "as_classifier",
    "attacks",
    "data",
    "defenses",
    "detectors",
    "eval",
    "models",
]
