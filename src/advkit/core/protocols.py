"""Protocols of attacks and detectors, by which the packages of layer 2 use each other."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from advkit.core.results import AttackResult


class Attack(Protocol):
    """Interface of an attack, as evaluation and training use it."""

    def __call__(
        self, model: Any, x: Tensor, y: Tensor | None = None, *, target: Tensor | None = None
    ) -> Tensor:
        """Return adversarial inputs with the shape of `x`."""
        ...

    def run(
        self, model: Any, x: Tensor, y: Tensor | None = None, *, target: Tensor | None = None
    ) -> AttackResult:
        """Return adversarial inputs, with their success, distance and cost.

        Labels are the caller's. An estimator with `labels="class"` has class values as labels:
        `models.labels.label_indices` converts them to the indices that `predict` returns.
        """
        ...


class Detector(Protocol):
    """Interface of a detector of outputs, as guards, adaptive attacks and evaluation use it."""

    def anomaly_score(self, outputs: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return a score `(n,)` for each of `outputs` `(n, width)`; greater is more anomalous."""
        ...


class InputDetector(Protocol):
    """Interface of a detector of inputs, which also gets the labels that the model predicts."""

    reads_inputs: bool
    """Always True. A detector without this attribute scores outputs."""

    def anomaly_score(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return a score `(n,)` for each of `x` `(n, *features)`; greater is more anomalous.

        `labels` `(n,)`, int64, are the model's predictions, or `None` if they are not known.
        """
        ...


class DifferentiableDetector(InputDetector, Protocol):
    """Interface of an input detector whose parts have gradients with respect to the input."""

    def margin_over_threshold(self, x: Tensor, labels: Tensor, threshold: float) -> Tensor:
        """Return the excess of each part over its limit for predictions `labels`, `(n, parts)`.

        For an anomaly score above `threshold`, at least one value is positive. For a score at or
        below it, no value is.
        """
        ...

    def features(self, x: Tensor) -> Tensor:
        """Return the features that the parts score, `(n, width)`."""
        ...


AnyAttack = TypeVar("AnyAttack", bound=Attack)
