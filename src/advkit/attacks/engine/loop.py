"""Loop of the iterative attacks with gradients.

It evaluates the current iterates, keeps the best of each sample and drops finished samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Best
from advkit.attacks.engine.rows import select, update_rows

# A search ends too early for a sample if its progress in this part of the steps, the last ones, is
# at least this multiple of that on average: see docs/findings/steps_run_out.md.
LATE_SHARE, STEADY = 0.1, 0.5
LEAST_DECREASE = 0.01  # of the violation that is left; less does not count
FEWEST_STEPS = 5  # that show a trend
Stop = Literal["first", "never"]
Keep = Literal["strongest", "last"]
State = TypeVar("State", bound=tuple[Tensor, ...])
Kept = TypeVar("Kept", bound=Any)  # a `Record`, which is also a tuple of tensors


def iterate(
    problem: Problem,
    start: Tensor,
    state: State,
    step: Callable[[int, Problem, Iterate, State], tuple[Tensor, State]],
    *,
    steps: int,
    best: Kept,
    finished: Callable[[Iterate, State], Tensor] | None = None,
    within: Tensor | None = None,
    formula: Callable[[Tensor], Kept] | None = None,
    first: bool = False,
) -> Kept:
    """Repeat `step` and keep an iterate of each sample.

    Every iterate is evaluated, including the first and the last. A finished sample leaves the batch
    immediately: it is not moved, evaluated or differentiated again.

    Args:
        problem: `n` samples.
        start: first iterates, `(n, *features)`.
        state: state of the step, a `NamedTuple` of tensors `(n, ...)`.
        step: function from `(i, problem, at, state)` to the next iterates and state, of the samples
            that are not finished. It computes the gradient at `at` with `problem`.
        steps: number of steps; each is followed by one forward pass.
        best: record of these samples so far.
        finished: function from the evaluated iterates and the state to a mask `(n,)` of the
            finished samples; `None` if no sample finishes early.
        within: distance at which a success also finishes a sample, `(n,)`, or `None`.
        formula: constructor of the record of the last iterates, for attacks that are one formula.
            These iterates are not evaluated here, but in the attack's `_verify`.
        first: whether this is the first pass of these samples, see `Problem.forward`.

    Returns:
        The record of all `n` samples; `best` is overwritten.
    """
    result, at = best, problem.forward(start, differentiate=True, first=first)
    open_rows = torch.arange(len(problem.x), device=problem.x.device)
    trend = _Trend(steps)
    for i in range(steps):
        best = best.improved(problem, at)
        trend.update(i, problem, best)
        done = _finished(problem, at, state, finished, within)
        if done is not None and done.any():
            update_rows(result, open_rows[done], select(best, done))
            if not (remaining := ~done).any():
                return result
            at = problem.select_for_backward(at, remaining)
            problem, best, state, open_rows, within = _select_open(
                remaining, problem, best, state, open_rows, within
            )
        x_adv, state = step(i, problem, at, state)
        problem.statistics.count_step(problem.rows)
        last = i == steps - 1
        if last and formula is not None:
            trend.finish(problem, best, lost=best.success)
            update_rows(result, open_rows, formula(x_adv))
            return result
        at = problem.forward(x_adv, differentiate=not last)
    best = best.improved(problem, at)
    trend.finish(problem, best)
    update_rows(result, open_rows, best)
    return result


def _select_open(
    mask: Tensor, problem: Problem, best: Kept, state: State, rows: Tensor, within: Tensor | None
) -> tuple[Problem, Kept, State, Tensor, Tensor | None]:
    """Return the parts of a search that belong to the samples where bool `mask` is true."""
    nearer = None if within is None else within[mask]
    return problem.select(mask), select(best, mask), select(state, mask), rows[mask], nearer


class _Trend:
    """Progress of a search for the strongest iterate in its last steps, next to that before.

    Args:
        steps: number of steps of the search; fewer than `FEWEST_STEPS` have no trend.
    """

    def __init__(self, steps: int) -> None:
        late = max(1, round(LATE_SHARE * steps))
        self._share, self._begin = late / max(steps, 1), steps - late
        self._measured = steps >= FEWEST_STEPS
        self._first = self._before = torch.empty(0)

    def update(self, i: int, problem: Problem, best: Any) -> None:
        """Keep the violations of the first iterates, and of those before the last steps."""
        if self._measured and i in (0, self._begin) and isinstance(best, Best):
            empty = best.violation.new_full((problem.statistics.n,), math.nan)
            self._before = empty.index_copy(0, problem.rows, best.violation)
            self._first = self._before if i == 0 else self._first

    def finish(self, problem: Problem, best: Any, lost: Tensor | None = None) -> None:
        """Record the failures whose violation fell in the last steps at least half as fast.

        `lost` is a mask of the samples with a success that is not the last iterate.
        """
        if lost is not None:
            problem.statistics.success_lost[problem.rows] = lost
        if len(self._first):
            first, before = (v[problem.rows] for v in (self._first, self._before))
            clean = problem.statistics.clean_violation[problem.rows].nan_to_num(posinf=-math.inf)
            total = torch.maximum(first, clean.to(first.dtype)) - best.violation
            late = before - best.violation
            steady = (total > LEAST_DECREASE * best.violation) & (
                late >= STEADY * self._share * total
            )
            problem.statistics.improving[problem.rows] = (best.violation > 0) & steady


def _finished(
    problem: Problem,
    at: Iterate,
    state: State,
    finished: Callable[[Iterate, State], Tensor] | None,
    within: Tensor | None,
) -> Tensor | None:
    """Return a mask `(n,)` of the finished samples; `None` if no sample finishes early."""
    done = None if finished is None else finished(at, state)
    if within is None:
        return done
    reached = at.success & (problem.exact_distance(at.x_adv) <= within)
    return reached if done is None else done | reached


def succeeded(at: Iterate, _: object) -> Tensor:
    """Return a mask `(n,)` of the samples that a search to the first success has finished."""
    return at.success
