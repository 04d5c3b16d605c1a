"""Warnings about budgets and steps that rounding to the dtype of the inputs removes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advkit.attacks.engine.problem import Problem
from advkit.core import checks
from advkit.core.norms import per_sample
from advkit.core.results import InconclusiveWarning
from advkit.core.tensors import at_least_float32


def warn_of_lost_budget(problem: Problem, eps: Tensor) -> None:
    """Warn of samples whose ball of radius `eps` `(n,)` contains no other input of their dtype."""
    if _may_be_lost(problem, eps):
        _warn("eps", problem.x, eps, (eps > 0) & _is_alone(problem, eps))


def warn_of_lost_steps(problem: Problem, length: Tensor, eps: Tensor) -> None:
    """Warn of samples that no step of `length` `(n,)` moves although the ball has other inputs."""
    if (length < eps).any() and _may_be_lost(problem, length):
        lost = _is_unmoved(problem.x, per_sample(length, problem.x)) & ~_is_alone(problem, eps)
        _warn("step_size", problem.x, length, lost)


def warn_of_lost_theta(problem: Problem, theta: float) -> None:
    """Warn of samples that do not change when `theta` is added to any feature."""
    x = problem.x
    length = x.new_full((len(x),), abs(theta))
    if _may_be_lost(problem, length):
        _warn("theta", x, length, (x + theta == x).flatten(1).all(1))


def _is_unmoved(x: Tensor, step: Tensor) -> Tensor:
    """Return a mask `(n,)` of the samples of `x` that no step up or down changes."""
    return ((x + step == x) & (x - step == x)).flatten(1).all(1)


def _may_be_lost(problem: Problem, length: Tensor) -> bool:
    """Return False if every `length` `(n,)` certainly moves features within the bounds."""
    largest = max(abs(bound) for bound in problem.model.bounds)
    return bool((length < torch.finfo(problem.x.dtype).eps * largest).any())


def _is_alone(problem: Problem, eps: Tensor) -> Tensor:
    """Return a mask `(n,)` of the samples with only `x` itself in their ball of radius `eps`."""
    x, step = problem.x, per_sample(eps, problem.x)
    if problem.norm != "linf" or x.element_size() > 2:
        return _is_unmoved(x, step)
    # In 16 bits features are never rounded out of their interval, see `Problem.round_into_ball`.
    ends = (x.nextafter(x.new_tensor(end)) for end in (-math.inf, math.inf))
    far = [
        (at_least_float32(end) - at_least_float32(x)).abs() > at_least_float32(step) for end in ends
    ]
    return (far[0] & far[1]).flatten(1).all(1)


def _warn(name: str, x: Tensor, length: Tensor, lost: Tensor) -> None:
    if lost.any():
        checks.warn(
            f"`{name}` must be large enough to move inputs of {x.dtype}, got "
            f"{length[lost][0]:g}, which is rounded away for {int(lost.sum())} of {len(lost)} "
            f"samples ({checks.samples(lost)}). Their failure says nothing about their "
            f"robustness. Use a larger `{name}` or inputs of a wider dtype.",
            InconclusiveWarning,
        )
