"""What every iterative attack repeats, written once.

Judge the current iterate, keep the best of each sample, drop finished samples from the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor

from advkit.attacks.engine.problem import Judged, Problem
from advkit.attacks.engine.records import Kept

Stop = Literal["first", "never"]
Keep = Literal["strongest", "last"]
State = TypeVar("State", bound=tuple[Tensor, ...])


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
