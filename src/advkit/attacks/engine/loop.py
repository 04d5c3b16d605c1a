"""What every iterative attack repeats, written once.

Judge the current iterate, keep the best of each sample, drop finished samples from the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from advkit.attacks._problem import Judged, Problem
from advkit.core.norms import per_sample
from advkit.core.tensors import asynchronous

Stop = Literal["first", "never"]
Keep = Literal["strongest", "last"]
State = TypeVar("State", bound=tuple[Tensor, ...])


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


def iterate(
    problem: Problem,
    x_adv: Tensor,
    state: State,
    step: Callable[[int, Problem, Judged, State], tuple[Tensor, State]],
    *,
    steps: int,
    best: Kept,
    finished: Callable[[Judged, State], Tensor] | None = None,
    formula: Callable[[Tensor], Kept] | None = None,
    first_look: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Kept:
    """Repeat `step` from `x_adv` and keep an iterate of each sample.

    Every iterate is judged, the first and the last too. A finished sample leaves the batch at once:
    it is not moved, not judged and not differentiated again.

    Args:
        problem: `n` samples.
        x_adv: where to begin, `(n, *features)`.
        state: what the step carries along, a `NamedTuple` of tensors `(n, ...)`.
        step: from `(i, problem, at, state)` to the next iterate and state, each of them for the
            samples still open; it asks `problem` for the gradient at `at`.
        steps: number of steps; one forward pass each, and one more for the last iterate.
        best: what has been kept of these samples so far.
        finished: which samples are, bool `(n,)`, from what was judged and carried; `None` for none.
        formula: for attacks that are one formula and return what it gives: makes the record of the
            last iterates, which are not judged here, since `conclude` does it anyway.
        first_look: whether these samples have not been judged before, see `Problem.judge`.
        advance: told of each step taken.

    Returns:
        What is kept of all `n` samples; `best` is used up.
    """
    found = best
    open_rows = torch.arange(len(problem.x), device=problem.x.device)
    for i in range(steps):
        at = problem.judge(x_adv, differentiate=True, first=first_look and i == 0)
        best = best.improved(problem, at)
        done = None if finished is None else finished(at, state)
        if done is not None and done.any():
            found.put(open_rows[done], best.take(done))
            still = ~done
            if not still.any():
                return found
            at, problem, best = problem.narrow(at, still), problem.take(still), best.take(still)
            open_rows, state = open_rows[still], type(state)(*(part[still] for part in state))
        x_adv, state = step(i, problem, at, state)
        advance(1)
    if formula is not None:
        best = formula(x_adv)
    else:
        best = best.improved(problem, problem.judge(x_adv, differentiate=False))
    found.put(open_rows, best)
    return found
