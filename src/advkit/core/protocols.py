"""Protocols of attacks and detectors, through which the packages of layer 2 meet."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from advkit.core.results import AttackResult


class Attack(Protocol):
    """What evaluation and training ask of an attack."""

    def __call__(
        self, model: Any, x: Tensor, y: Tensor | None = None, *, target: Tensor | None = None
    ) -> Tensor:
        """Adversarial inputs like `x`."""
        ...

    def run(
        self, model: Any, x: Tensor, y: Tensor | None = None, *, target: Tensor | None = None
    ) -> AttackResult:
        """Adversarial inputs and what is known of them.

        Labels are those of a caller. For a model whose classes they name by values, an estimator
        with `labels="class"`, `models.labels.label_indices` gives the indices that `predict` does.
        """
        ...


class Detector(Protocol):
    """What guards, adaptive attacks and evaluation ask of a detector of the model's outputs."""

    def anomaly_score(self, outputs: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return a score `(n,)` for each of `outputs` `(n, width)`; greater is more anomalous."""
        ...


class InputDetector(Protocol):
    """A detector of inputs, which also gets the labels that the model predicts for them."""

    reads_inputs: bool
    """True. A detector without this attribute scores outputs."""

    def anomaly_score(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return a score `(n,)` for each of `x` `(n, *features)`; greater is more anomalous.

        `labels` `(n,)`, int64, are the model's predictions, or `None` where they are not known.
        """
        ...


class DifferentiableDetector(InputDetector, Protocol):
    """An input detector that shows its parts, with gradients to the input."""

    def margin_over_threshold(self, x: Tensor, labels: Tensor, threshold: float) -> Tensor:
        """How far each part is above what it lets pass, `(n, parts)`, if the answers are `labels`.

        An anomaly score above `threshold` means that at least one is positive, and none at or below it is.
        """
        ...

    def features(self, x: Tensor) -> Tensor:
        """What the parts look at, `(n, width)`."""
        ...


AnyAttack = TypeVar("AnyAttack", bound=Attack)
