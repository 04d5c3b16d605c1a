"""Steps in units of the box: what DDN, FMN and sigma-zero share.

Their published lengths are those of inputs in [0, 1]. Perturbations are measured in widths of the
bounds here, so that these lengths have the same meaning for all bounds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advkit.attacks.engine.problem import Iterate, Problem
from advkit.core.norms import Norm, lp_norm
from advkit.core.tensors import at_least_float32


def cosine_annealed(first: float, last: float, i: int, steps: int) -> float:
    """Return the value at step `i` of a cosine that falls from `first` to `last` in `steps`."""
    return last + (first - last) * (1 + math.cos(math.pi * i / steps)) / 2


def box_width(problem: Problem) -> float:
    """Return the width of the bounds."""
    lower, upper = problem.model.bounds
    return upper - lower


def unit_delta(problem: Problem, x_adv: Tensor) -> Tensor:
    """Return the perturbations of `x_adv` in widths of the bounds, `(n, *features)`."""
    return (at_least_float32(x_adv) - at_least_float32(problem.x)) / box_width(problem)


def unit_gradient(problem: Problem, at: Iterate) -> Tensor:
    """Return the gradient of the objective for steps in widths, `(n, *features)`, as a new tensor.

    It is zero where it is invalid. The pass is counted.
    """
    return at_least_float32(problem.ascent_direction(at)) * box_width(problem)


def perturbed(problem: Problem, delta: Tensor) -> Tensor:
    """Return the clean inputs moved by `delta` widths `(n, *features)`, clipped to the bounds."""
    return problem.clip(at_least_float32(problem.x) + box_width(problem) * delta)


def longest_delta(problem: Problem, norm: Norm) -> Tensor:
    """Return the norm `(n,)` of the longest perturbation in the bounds, in widths."""
    lower, upper = problem.model.bounds
    x = at_least_float32(problem.x)
    return lp_norm(torch.maximum(x - lower, upper - x) / box_width(problem), norm)
