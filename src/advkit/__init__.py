"""advkit: vectorized adversarial attacks in PyTorch, and evaluations that can be trusted."""

from typing import TYPE_CHECKING

from advkit.core.version import VERSION

if TYPE_CHECKING:
    from advkit import attacks, data, defenses, detectors, eval, models
    from advkit.core.results import (
        AttackInterrupted,
        InconclusiveWarning,
        QueryBudgetExceeded,
        ServiceError,
    )
    from advkit.core.sample_rows import current_rows, given_rows
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

__version__ = VERSION

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
    "current_rows",
    "data",
    "defenses",
    "detectors",
    "eval",
    "given_rows",
    "models",
]

_PACKAGES = ("attacks", "data", "defenses", "detectors", "eval", "models")
_MODULES = {  # of the public names that are not in `advkit.models`
    "AttackInterrupted": "advkit.core.results",
    "InconclusiveWarning": "advkit.core.results",
    "QueryBudgetExceeded": "advkit.core.results",
    "ServiceError": "advkit.core.results",
    "current_rows": "advkit.core.sample_rows",
    "given_rows": "advkit.core.sample_rows",
}

if not TYPE_CHECKING:  # with `__getattr__`, a type checker would accept every name

    def __getattr__(name: str) -> object:
        """Import the module of a public name at the first use of that name.

        `import advkit` itself imports no package, so that the command can handle Ctrl-C while torch
        is imported. Attacks and models need neither scipy nor scikit-learn, whose import takes a
        second.
        """
        if name not in __all__:
            raise AttributeError(f"module 'advkit' has no attribute {name!r}")
        from importlib import import_module

        if name in _PACKAGES:
            return import_module(f"advkit.{name}")
        return getattr(import_module(_MODULES.get(name, "advkit.models")), name)


def __dir__() -> list[str]:
    """Return the global names and all public names, imported or not."""
    return sorted({*globals(), *__all__})
