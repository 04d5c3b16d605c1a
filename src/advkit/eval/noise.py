"""Random noise: the baseline that every attack with a budget has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advkit.core import checks
from advkit.core.norms import Norm
from advkit.core.randomness import salt_and_pepper, sample_keys, uniform_in_ball
from advkit.eval.accuracy import Rate
from advkit.eval.budgets import budget_words
from advkit.models import Classifier

_SEED = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseOutcome:
    """What one draw of random noise within a budget did to each of `n` inputs.

    Attributes:
        norm: of the budget.
        eps: the budget in input units.
        robust: bool `(n,)`; labelled correctly without the noise and with it.
    """

    norm: Norm
    eps: float
    robust: Tensor

    @property
    def budget(self) -> str:
        """Norm and `eps` in words."""
        return budget_words(self.norm, self.eps)

    @property
    def robust_accuracy(self) -> Rate:
        """Share of all inputs that are labelled correctly and withstood the noise."""
        return Rate.of(self.robust)


class NoiseTally:
    """What the noise of one budget has done so far, batch by batch."""

    def __init__(self, norm: Norm, eps: float) -> None:
        self.norm = norm
        self.eps = eps
        self.robust: list[Tensor] = []

    def add(self, model: Classifier, x: Tensor, y: Tensor, right: Tensor) -> None:
        """Ask the model about noisy versions of those samples of a batch where `right`."""
        robust = right.clone()
        if right.any():
            x_noisy = noisy(x[right], model.bounds, self.norm, self.eps)
            robust[right] = model.predict(x_noisy) == y[right]
        self.robust.append(robust.cpu())

    def outcome(self) -> NoiseOutcome:
        """All of it so far."""
        return NoiseOutcome(norm=self.norm, eps=self.eps, robust=torch.cat(self.robust))


def noisy(x: Tensor, bounds: tuple[float, float], norm: Norm, eps: float) -> Tensor:
    """`x` `(n, *features)` with noise drawn uniformly from the ball, clamped to `bounds`.

    In l0, `eps` features chosen at random are set to one of the bounds. The noise of a sample does
    not depend on its batch.
    """
    keys = sample_keys(x, bounds, _SEED)
    radius = checks.budget(eps, x)
    if norm == "l0":
        return salt_and_pepper(keys, radius, x, bounds)
    return (x + uniform_in_ball(keys, radius, norm, x)).clamp(*bounds)
