"""The loop of every iterative attack with gradients.

Evaluate the current iterate, keep the best of each sample, drop finished samples from the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.rows import select, update_rows

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
    formula: Callable[[Tensor], Kept] | None = None,
    first: bool = False,
) -> Kept:
    """Repeat `step` and keep an iterate of each sample.

    Every iterate is evaluated, the first and the last too. A finished sample leaves the batch at
    once: it is not moved, evaluated or differentiated again.

    Args:
        problem: `n` samples.
        start: where to begin, `(n, *features)`.
        state: what the step carries along, a `NamedTuple` of tensors `(n, ...)`.
        step: from `(i, problem, at, state)` to the next iterate and state, each of them for the
            samples still open; it gets the gradient at `at` from `problem`.
        steps: number of steps; one forward pass after each of them.
        best: what has been kept of these samples so far.
        finished: which samples are, bool `(n,)`, from what was evaluated and carried; `None` for
            none.
        formula: for attacks that are one formula and return what it gives: makes the record of the
            last iterates, which are not evaluated here, since the attack's `_verify` does so.
        first: whether no pass has seen these samples before, see `Problem.forward`.

    Returns:
        What is kept of all `n` samples; `best` is used up.
    """
    found, at = best, problem.forward(start, differentiate=True, first=first)
    open_rows = torch.arange(len(problem.x), device=problem.x.device)
    for i in range(steps):
        best = best.improved(problem, at)
        done = None if finished is None else finished(at, state)
        if done is not None and done.any():
            update_rows(found, open_rows[done], select(best, done))
            still = ~done
            if not still.any():
                return found
            at, problem, best = (
                problem.select_for_backward(at, still),
                problem.select(still),
                select(best, still),
            )
            open_rows, state = open_rows[still], select(state, still)
        x_adv, state = step(i, problem, at, state)
        problem.statistics.advance(1)
        last = i == steps - 1
        if last and formula is not None:
            update_rows(found, open_rows, formula(x_adv))
            return found
        at = problem.forward(x_adv, differentiate=not last)
    update_rows(found, open_rows, best.improved(problem, at))
    return found
