"""Records: the iterate that is kept for each sample of a batch."""

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
        """Return a record with the better iterates of `at`, in tensors of its own."""
        ...


class Best(NamedTuple):
    """Strongest iterate of each sample of a batch."""

    x_adv: Tensor  # (n, *features)
    violation: Tensor  # (n,), inf where no iterate was evaluated

    @staticmethod
    def unevaluated(x_adv: Tensor) -> Best:
        """Return a record of iterates that have not been evaluated."""
        dtype = torch.promote_types(x_adv.dtype, torch.float32)
        return Best(x_adv.clone(), x_adv.new_full((len(x_adv),), math.inf, dtype=dtype))

    @property
    def success(self) -> Tensor:
        """Mask `(n,)` of the samples that reach the goal."""
        return self.violation <= 0

    def improved(self, problem: Problem, at: Iterate) -> Best:
        """Return the iterate of each sample with the larger margin past the decision boundary."""
        better = at.violation < self.violation
        return Best(*choose(better, (at.x_adv, at.violation), self))


class Nearest(NamedTuple):
    """Success of each sample of a batch that is nearest to the clean input."""

    x_adv: Tensor  # (n, *features), the clean input if there is no success
    violation: Tensor  # (n,), inf if there is no success
    distance: Tensor  # (n,), inf if there is no success

    @staticmethod
    def empty(x: Tensor) -> Nearest:
        """Return a record of the clean inputs `x` that has no success."""
        best = Best.unevaluated(x)
        return Nearest(*best, torch.full_like(best.violation, math.inf))

    @property
    def success(self) -> Tensor:
        """Mask `(n,)` of the samples with a success."""
        return self.violation <= 0

    def improved(self, problem: Problem, at: Iterate) -> Nearest:
        """Return a record with the successes of `at` that are nearer."""
        distance = torch.where(at.success, problem.distance(at.x_adv), math.inf)
        return self.nearer(Nearest(at.x_adv, at.violation, distance))

    def nearer(self, other: Nearest) -> Nearest:
        """Return the nearer success of the two records for each sample."""
        return Nearest(*choose(other.distance < self.distance, other, self))
