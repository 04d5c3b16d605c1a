"""Protocols of models. They are structural: a class with these members needs no base class."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, runtime_checkable

from torch import Tensor

from advkit.core.bounds import Bounds

# Label of an input that a classifier rejects or on which it abstains. A rejection is never correct,
# and it is not a success of an attack either. Logits cannot express a rejection, so a classifier
# that may reject has none.
REJECTED = -1


class Classifier(Protocol):
    """Classifier of inputs `(n, *features)` whose values lie within `bounds`."""

    @property
    def bounds(self) -> Bounds:
        """Valid feature values."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of labels, at least 2."""
        ...

    def predict(self, x: Tensor) -> Tensor:
        """Return labels `(n,)`, int64; `REJECTED` for inputs without a label."""
        ...


class ScoreClassifier(Classifier, Protocol):
    """Classifier that also returns a score for each class."""

    def scores(self, x: Tensor) -> Tensor:
        """Return probabilities or other scores `(n, num_classes)`, detached; the largest wins."""
        ...


class DifferentiableClassifier(Classifier, Protocol):
    """Classifier whose logits can be differentiated with respect to the input."""

    def logits(self, x: Tensor) -> Tensor:
        """Return logits `(n, num_classes)`; `predict` returns the class of the largest one."""
        ...


@runtime_checkable
class HasEvaluating(Protocol):
    """Classifier that can save and restore its state once for many calls."""

    def evaluating(self) -> AbstractContextManager[None]:
        """Return a context in which the model is evaluated; its exit restores the state."""
        ...


def evaluating(model: object) -> AbstractContextManager[None]:
    """Return a context for many calls to `model`, which saves and restores its state only once.

    Without it, each call saves and restores the state. A custom model that keeps no state needs no
    `evaluating` method, and the context does nothing for it.
    """
    return model.evaluating() if isinstance(model, HasEvaluating) else nullcontext()


def may_interrupt(model: object) -> bool:
    """Return True if a call to `model` may raise `AttackInterrupted`.

    This holds if the model has a query budget, or if its attribute `may_interrupt` is true.
    Classifiers that wrap other classifiers pass the attribute on.
    """
    return getattr(model, "max_queries", None) is not None or bool(
        getattr(model, "may_interrupt", False)
    )


def max_batch(model: object) -> int | None:
    """Return the maximum number of samples in one call of what `model` wraps; `None` for no limit.

    A caller that pays for predictions should not request more of them in one call: if the call
    fails, all predictions that it had received are lost.
    """
    size: int | None = getattr(model, "max_batch", None)
    return size


def is_misclassified(predicted: Tensor, y: Tensor) -> Tensor:
    """Return a mask of the labels of `predicted` `(*, n)` that are another class than `y` `(n,)`.

    A negative label is not a class: the input was rejected, or the model could not label it.
    """
    return (predicted != y) & (predicted >= 0)
