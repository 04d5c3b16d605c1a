"""advkit: vectorized adversarial attacks in PyTorch, and evaluations that can be trusted."""

from typing import TYPE_CHECKING

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
    "current_rows",
    "data",
    "defenses",
    "detectors",
    "eval",
    "given_rows",
    "models",
]

if not TYPE_CHECKING:  # with `__getattr__`, a type checker would accept every name

    def __getattr__(name: str) -> object:
        """Import the packages at the first use of a public name.

        `import advkit` itself imports no package, so that the command can handle Ctrl-C while torch
        is imported.
        """
        if name not in __all__:
            raise AttributeError(f"module 'advkit' has no attribute {name!r}")
        import advkit.attacks
        import advkit.core.results
        import advkit.core.sample_rows
        import advkit.data
        import advkit.defenses
        import advkit.detectors
        import advkit.eval
        import advkit.models

        for module in (advkit, advkit.core.results, advkit.core.sample_rows, advkit.models):
            if name in vars(module):
                return vars(module)[name]
        raise AssertionError(f"no module of advkit defines {name}")


def __dir__() -> list[str]:
    """Return the global names and all public names, imported or not."""
    return sorted({*globals(), *__all__})
