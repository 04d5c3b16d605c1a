"""Classifiers inside classifiers, and the properties that both share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from advkit.core.bounds import Bounds
from advkit.models.labels import label_values
from advkit.models.protocols import evaluating, max_batch, may_interrupt


class HasInnerModel:
    """Base class of the classifiers that wrap another one, `model`.

    They have its bounds, its classes and its limits, and `evaluating` passes through to it.
    """

    model: Any

    @property
    def bounds(self) -> Bounds:
        """Valid feature values."""
        bounds: Bounds = self.model.bounds
        return bounds

    @property
    def num_classes(self) -> int:
        """Number of classes, not counting the rejection.

        Raises:
            ValueError: the inner model does not know it before its first pass.
        """
        count: int = self.model.num_classes
        return count

    @property
    def label_values(self) -> Tensor | None:
        """Labels `(num_classes,)` that name the classes; `None` if their indices do."""
        return label_values(self.model)

    @property
    def max_batch(self) -> int | None:
        """Maximum number of samples in one call of the inner model; `None` for no limit."""
        return max_batch(self.model)

    @property
    def may_interrupt(self) -> bool:
        """True if a call may raise `AttackInterrupted` because the inner model may."""
        return may_interrupt(self.model)

    def evaluating(self) -> AbstractContextManager[None]:
        """Return a context for many calls, which saves and restores the inner state once."""
        return evaluating(self.model)


def innermost(model: Any) -> Iterator[Any]:
    """Yield the classifiers inside `model` that do not wrap another one, or `model` itself.

    A module ends the search, also if it has an attribute with the name of a wrapped model.
    """
    members = getattr(model, "models", ())
    inner = (*(members if isinstance(members, tuple) else ()), getattr(model, "model", None))
    parts = {id(part): part for part in inner if part is not None}
    if isinstance(model, nn.Module) or not parts:
        yield model
        return
    for part in parts.values():
        yield from innermost(part)
