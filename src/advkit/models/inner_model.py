"""What a classifier around another one shares with it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from advkit.models.labels import label_values
from advkit.models.protocols import Bounds, evaluating, max_batch, may_interrupt


class HasInnerModel:
    """Base of the classifiers around another one, `model`.

    They have its bounds, its classes and its limits, and are held together with it.
    """

    model: Any

    @property
    def bounds(self) -> Bounds:
        """Valid feature values."""
        bounds: Bounds = self.model.bounds
        return bounds

    @property
    def num_classes(self) -> int:
        """Number of classes, without the rejection.

        Raises:
            ValueError: the inner model does not know it before its first pass.
        """
        count: int = self.model.num_classes
        return count

    @property
    def label_values(self) -> Tensor | None:
        """Labels `(num_classes,)` that name the classes, `None` for their indices."""
        return label_values(self.model)

    @property
    def max_batch(self) -> int | None:
        """The most samples that a call of the inner model may have; `None` for any number."""
        return max_batch(self.model)

    @property
    def may_interrupt(self) -> bool:
        """True if a call may raise `AttackInterrupted`, as one of the inner model may."""
        return may_interrupt(self.model)

    def evaluating(self) -> AbstractContextManager[None]:
        """Keep the inner model in the state of an evaluation over many calls."""
        return evaluating(self.model)
