"""Repeated runs of a search, each on the samples without a success so far."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from advkit.attacks.engine.loop import Stop
from advkit.attacks.engine.problem import Problem
from advkit.attacks.engine.records import Best
from advkit.attacks.engine.rows import select, update_rows


def strongest_of_runs(
    problem: Problem, best: Best, runs: int, run: Callable[[int, Problem], Best], stop: Stop
) -> Best:
    """Return the strongest iterates of `best` and of `runs` searches.

    Args:
        problem: a whole batch of `n` samples.
        best: their strongest iterates so far, overwritten.
        runs: greatest number of searches.
        run: function from the number of the search and the samples to search to their strongest
            iterates.
        stop: `"first"` to search samples without a success only, `"never"` to search all.
    """
    for i in range(runs):
        remaining = remaining_samples(best, stop)
        if not remaining.any():
            break
        part = problem.select(remaining)
        found = run(i, part)
        before = best.violation[part.rows]
        better = (found.violation < before) | before.isinf()  # nothing was evaluated before
        update_rows(best, part.rows[better], select(found, better))
    return best


def remaining_samples(best: Best, stop: Stop) -> Tensor:
    """Return a mask `(n,)` of the samples to search: with `"first"`, those without a success."""
    return ~best.success if stop == "first" else torch.ones_like(best.success)
