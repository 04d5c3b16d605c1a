"""What advkit asks of a model. Nothing is inherited: a class with these members is enough."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

# The label of an input that a classifier rejects or abstains on. It is no answer, so never right,
# and no success of an attack either. Logits cannot say it: a classifier that may reject has none.
REJECTED = -1


class Bounds(NamedTuple):
    """Closed interval of valid feature values, in the units of the input."""

    lower: float
    upper: float


class Classifier(Protocol):
    """Labels inputs `(n, *features)` whose values lie within `bounds`."""

    @property
    def bounds(self) -> Bounds:
        """Valid feature values."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of labels, at least 2."""
        ...

    def predict(self, x: Tensor) -> Tensor:
        """Labels `(n,)`, int64; `REJECTED` where it has none."""
        ...


class ScoreClassifier(Classifier, Protocol):
    """A classifier that also gives a score for each class."""

    def scores(self, x: Tensor) -> Tensor:
        """Probabilities or other scores `(n, num_classes)`, detached; the largest wins."""
        ...


class DifferentiableClassifier(Classifier, Protocol):
    """A classifier whose logits can be differentiated with respect to the input."""

    def logits(self, x: Tensor) -> Tensor:
        """Pre-softmax scores `(n, num_classes)`; the largest is what `predict` answers."""
        ...


@runtime_checkable
class HasEvaluating(Protocol):
    """A classifier that can be held in the state of an evaluation over many calls."""

    def evaluating(self) -> AbstractContextManager[None]:
        """Evaluation state inside, the state before afterwards."""
        ...


def evaluating(model: object) -> AbstractContextManager[None]:
    """The time of many calls to `model`: its state is saved and restored once, not at each call.

    A model of one's own that keeps no state needs no `evaluating` and passes through.
    """
    return model.evaluating() if isinstance(model, HasEvaluating) else nullcontext()


def may_interrupt(model: object) -> bool:
    """Return whether a call to `model` may raise `AttackInterrupted`.

    It has a query budget, or says so by a `may_interrupt` of its own, which classifiers around
    other classifiers pass on.
    """
    return getattr(model, "max_queries", None) is not None or bool(
        getattr(model, "may_interrupt", False)
    )


def max_batch(model: object) -> int | None:
    """Return the most samples that one call of what is behind `model` may have.

    `None` for any number. Who pays for answers asks for no more of them at once: what one call had
    answered before it failed is lost.
    """
    most: int | None = getattr(model, "max_batch", None)
    return most


def is_misclassified(answer: Tensor, y: Tensor) -> Tensor:
    """Whether each label of `answer` `(*, n)` is another class than that of `y` `(n,)`.

    A negative answer is not a class: the input was rejected, or the model could not label it.
    """
    return (answer != y) & (answer >= 0)
