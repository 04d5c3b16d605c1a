"""Random noise: a baseline that every attack with a budget should exceed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from advkit.core import checks
from advkit.core.norms import COUNTS, Norm
from advkit.core.randomness import salt_and_pepper, sample_keys, uniform_noise
from advkit.eval.accuracy import ClassifiedBatch, Rate
from advkit.eval.budgets import format_budget
from advkit.models import Classifier
from advkit.models.protocols import is_misclassified

SEED = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseOutcome:
    """Outcome of one draw of random noise within a budget for each of `n` inputs.

    Attributes:
        norm: norm of the budget.
        eps: the budget in input units.
        robust: bool `(n,)`; labeled correctly without the noise and with it. As for attacks, a
            rejection and NaN or infinite logits under the noise do not count against the model.
    """

    norm: Norm
    eps: float
    robust: Tensor

    @property
    def budget(self) -> str:
        """Norm and `eps` as text."""
        return format_budget(self.norm, self.eps)

    @property
    def robust_accuracy(self) -> Rate:
        """Share of all inputs that are labeled correctly both without the noise and with it."""
        return Rate.of(self.robust)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: norm, `eps` and the robust accuracy."""
        return {"norm": self.norm, "eps": self.eps, **self.robust_accuracy.to_dict()}


def robust_to_noise(model: Classifier, batch: ClassifiedBatch, norm: Norm, eps: float) -> Tensor:
    """Return a mask `(n,)` of the samples that are correct, and not misclassified with noise."""
    robust = batch.correct.clone()
    if robust.any():
        x, y = batch.attacked
        predicted = batch.predict_attacked(model, noisy(x, model.bounds, norm, eps))
        # No label and a rejection count as failures of the noise, as for attacks.
        robust[batch.correct] = ~is_misclassified(predicted, y)
    return robust


def noisy(x: Tensor, bounds: tuple[float, float], norm: Norm, eps: float) -> Tensor:
    """Return `x` `(n, *features)` with noise drawn uniformly from the ball, clamped to `bounds`.

    In l0, `eps` features or pixels chosen at random are set to one of the bounds. The noise of a
    sample does not depend on its batch.
    """
    radius = checks.radii(eps, x)
    if norm in COUNTS:
        return salt_and_pepper(sample_keys(x, bounds, SEED), radius, x, bounds, norm)
    return uniform_noise(x, radius, norm, bounds, SEED).clamp(*bounds)
