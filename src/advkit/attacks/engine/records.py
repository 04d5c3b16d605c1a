"""Records: which iterate is kept of each sample of a batch."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from typing_extensions import Self

from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.rows import choose


class Record(Protocol):
    """A `NamedTuple` of tensors `(n, ...)` that keeps an iterate of each sample."""

    def improved(self, problem: Problem, at: Iterate) -> Self:
        """Return a record with those iterates of `at` that are better, in tensors of its own."""
        ...


class Best(NamedTuple):
    """The strongest iterate of each sample of a batch."""

    x_adv: Tensor  # (n, *features)
    violation: Tensor  # (n,), inf where nothing was judged

    @staticmethod
    def unevaluated(x_adv: Tensor) -> Best:
        """Return a record of iterates that no forward pass has evaluated."""
        dtype = torch.promote_types(x_adv.dtype, torch.float32)
        return Best(x_adv.clone(), x_adv.new_full((len(x_adv),), math.inf, dtype=dtype))

    @property
    def success(self) -> Tensor:
        """Bool `(n,)`, true where the goal is reached."""
        return self.violation <= 0

    def improved(self, problem: Problem, at: Iterate) -> Best:
        """Return each sample's stronger iterate, by the margin past the decision boundary."""
        better = at.violation < self.violation
        return Best(*choose(better, (at.x_adv, at.violation), self))


class Nearest(NamedTuple):
    """The success of each sample of a batch that is nearest to its input."""

    x_adv: Tensor  # (n, *features), the clean input where there was no success
    violation: Tensor  # (n,), inf where there was no success
    distance: Tensor  # (n,), inf where there was no success

    @staticmethod
    def empty(x: Tensor) -> Nearest:
        """Return a record of the clean inputs `x`, without a success."""
        best = Best.unevaluated(x)
        return Nearest(*best, torch.full_like(best.violation, math.inf))

    @property
    def success(self) -> Tensor:
        """Bool `(n,)`, true where the goal is reached."""
        return self.violation <= 0

    def improved(self, problem: Problem, at: Iterate) -> Nearest:
        """Return each sample's nearer success."""
        distance = torch.where(at.success, problem.distance(at.x_adv), math.inf)
        return self.nearer(Nearest(at.x_adv, at.violation, distance))

    def nearer(self, other: Nearest) -> Nearest:
        """Return each sample's nearer one of the two."""
        return Nearest(*choose(other.distance < self.distance, other, self))
