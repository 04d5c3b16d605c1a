"""Random starts: a point of each sample's ball."""

from __future__ import annotations

from torch import Tensor

from advkit.attacks.engine.problem import Problem
from advkit.core.randomness import uniform_noise


def random_start(problem: Problem, eps: Tensor, seed: int, restart: int) -> Tensor:
    """Draw a point uniformly from the volume of each sample's ball, cut to the bounds.

    The point of a sample depends on its own input, never on the rest of the batch.

    Args:
        problem: `n` samples.
        eps: radius of each ball, `(n,)`.
        seed: of the draws.
        restart: number of the draw.

    Returns:
        `(n, *features)`.
    """
    bounds = problem.model.bounds
    noisy = uniform_noise(problem.x, eps, problem.norm, bounds, seed, restart)
    return problem.inside(problem.clip(noisy), eps)
