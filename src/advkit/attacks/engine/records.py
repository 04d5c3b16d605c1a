"""Records: what is kept of each sample of a batch."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from advkit.attacks.engine.problem import Judged, Problem
from advkit.core.norms import per_sample
from advkit.core.tensors import asynchronous


class Record(Protocol):
    """What is kept of each sample of a batch."""

    def improved(self, problem: Problem, at: Judged) -> Self:
        """With what `at` has that is better."""
        ...

    def take(self, keep: Tensor) -> Self:
        """The same for the samples where bool `keep` `(n,)` is true."""
        ...

    def put(self, rows: Tensor, found: Self) -> None:
        """Write `found` into the samples `rows`, in place."""
        ...


Kept = TypeVar("Kept", bound=Record)


class Best(NamedTuple):
    """The strongest iterate of each sample of a batch."""

    x_adv: Tensor  # (n, *features)
    shortfall: Tensor  # (n,), inf where nothing was judged

    @property
    def success(self) -> Tensor:
        """Whether the goal was reached, bool `(n,)`."""
        return self.shortfall <= 0

    def improved(self, problem: Problem, at: Judged) -> Best:
        """Each sample's stronger one: further past the decision boundary, or nearer to it."""
        better = at.shortfall < self.shortfall
        return Best(*_each(better, (at.x_adv, at.shortfall), self))

    def take(self, keep: Tensor) -> Best:
        """The same for the samples where bool `keep` `(n,)` is true."""
        return Best(*(part[keep] for part in self))

    def put(self, rows: Tensor, found: Best) -> None:
        """Write `found` into the samples `rows`, in place."""
        write(self, rows, found)


class Nearest(NamedTuple):
    """The success of each sample of a batch that is nearest to its input."""

    x_adv: Tensor  # (n, *features), the clean input where there was no success
    shortfall: Tensor  # (n,), inf where there was no success
    distance: Tensor  # (n,), likewise

    @property
    def success(self) -> Tensor:
        """Whether the goal was reached, bool `(n,)`."""
        return self.shortfall <= 0

    def improved(self, problem: Problem, at: Judged) -> Nearest:
        """Each sample's nearer success."""
        distance = torch.where(at.success, problem.distance(at.x_adv), math.inf)
        return self.nearer(Nearest(at.x_adv, at.shortfall, distance))

    def nearer(self, other: Nearest) -> Nearest:
        """Each sample's nearer one of the two."""
        return Nearest(*_each(other.distance < self.distance, other, self))

    def take(self, keep: Tensor) -> Nearest:
        """The same for the samples where bool `keep` `(n,)` is true."""
        return Nearest(*(part[keep] for part in self))

    def put(self, rows: Tensor, found: Nearest) -> None:
        """Write `found` into the samples `rows`, in place."""
        write(self, rows, found)


def _each(better: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> list[Tensor]:
    """Row by row the `new` parts where bool `better` `(n,)` is true, else the `old` ones."""
    if not asynchronous(better.device) and better.all():
        return [n.clone() for n in new]  # a record is written to, an iterate is not
    pairs = zip(new, old, strict=True)
    return [torch.where(per_sample(better, n), n, o) for n, o in pairs]


def write(mine: tuple[Tensor, ...], rows: Tensor, other: tuple[Tensor, ...]) -> None:
    """Write each part of `other` into the samples `rows` of `mine`, in place."""
    for part, new in zip(mine, other, strict=True):
        part[rows] = new.to(part.dtype)


def nothing_yet(problem: Problem) -> Best:
    """The clean inputs, to be replaced by whatever has been judged."""
    return unjudged(problem.x)


def none_near(problem: Problem) -> Nearest:
    """The clean inputs, to be replaced by the first success."""
    best = unjudged(problem.x)
    return Nearest(*best, torch.full_like(best.shortfall, math.inf))


def unjudged(x_adv: Tensor) -> Best:
    """Iterates that no forward pass has seen."""
    dtype = torch.promote_types(x_adv.dtype, torch.float32)
    return Best(x_adv.clone(), torch.full_like(x_adv.flatten(1)[:, 0], math.inf, dtype=dtype))
