"""Steps in a ball whose radius adapts to the distance of the boundary, the search of FMN."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.loop import iterate
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Nearest
from advkit.attacks.engine.unit_steps import (
    cosine_annealed,
    longest_delta,
    perturbed,
    unit_delta,
    unit_gradient,
)
from advkit.core.norms import DUAL, Norm, keep_largest, lp_norm, normalize, per_sample, project

FIRST_STEP_FACTOR = 1.001  # until the first success, over the distance to the boundary: rounding


class _State(NamedTuple):
    """State of each sample from step to step."""

    eps: Tensor  # (n,), radius of the ball, in widths of the bounds, or features in l0
    nearest: Tensor  # (n,), distance of the nearest success in the same unit, inf without one
    direction: Tensor  # (n, *features), running sum of the normalized gradients
    finished: Tensor  # bool (n,), no further step can bring it nearer


@dataclass(frozen=True, kw_only=True)
class AdaptiveBall:
    """Steps along the gradient, each projected onto a ball of the radius of the moment.

    Attributes:
        norm: of the ball, `"l0"`, `"l1"`, `"l2"` or `"linf"`.
        steps: number of steps; each costs one forward and one backward pass.
        alpha_init: length of the first step in l2, in widths of the bounds.
        alpha_final: length of the last step.
        gamma_init: share by which the radius changes after the first step.
        gamma_final: and after the last one.
        momentum: weight of the previous direction against the normalized gradient.
        published: whether the radius is exactly that of the paper.
    """

    norm: Norm
    steps: int
    alpha_init: float = 1.0
    alpha_final: float = 0.01
    gamma_init: float = 0.05
    gamma_final: float = 0.001
    momentum: float = 0.0
    published: bool = False

    def search(
        self, problem: Problem, start: Tensor, nearest: Nearest, *, eps: Tensor | None = None
    ) -> Nearest:
        """Return `nearest` with the successes that are nearer.

        Args:
            problem: `n` samples.
            start: first iterates, `(n, *features)`.
            nearest: record of these samples so far.
            eps: distance at which a success ends the search, `(n,)`, or `None`.
        """
        radius = 1.0 if self.norm == "l0" else 0.0
        return iterate(
            problem,
            start,
            _State(
                eps=torch.full_like(nearest.distance, radius),
                nearest=torch.full_like(nearest.distance, math.inf),
                direction=torch.zeros_like(unit_delta(problem, start)),
                finished=torch.zeros_like(nearest.success),
            ),
            self._step,
            steps=self.steps,
            best=nearest,
            finished=lambda _, state: state.finished,
            within=eps,
        )

    def _step(self, i: int, problem: Problem, at: Iterate, state: _State) -> tuple[Tensor, _State]:
        alpha = cosine_annealed(self.alpha_init, self.alpha_final, i, self.steps)
        grad, delta = unit_gradient(problem, at), unit_delta(problem, at.x_adv)
        direction = normalize(grad, "l2").add_(state.direction, alpha=self.momentum)
        distance = lp_norm(delta, self.norm)
        nearest = torch.where(at.success, torch.minimum(distance, state.nearest), state.nearest)
        state = state._replace(nearest=nearest)
        eps = self._next_eps(i, at, grad, distance, state)
        eps = torch.minimum(eps, longest_delta(problem, self.norm))
        finished = ~at.success & (lp_norm(grad, "linf") == 0)
        if self.norm == "l0":
            finished |= nearest <= 1
        delta = self._to_radius(delta.add_(normalize(direction, "l2"), alpha=alpha), eps)
        return perturbed(problem, delta), _State(eps, nearest, direction, finished)

    def _next_eps(
        self, i: int, at: Iterate, grad: Tensor, distance: Tensor, state: _State
    ) -> Tensor:
        """Return the radius `(n,)` of the next iterates, which may exceed the bounds.

        Args:
            i: step.
            at: iterates of `n` samples.
            grad: their gradients for steps in widths, `(n, *features)`.
            distance: their distances, `(n,)`.
            state: the last radius, and the distance of the nearest success including `at`.
        """
        gamma = cosine_annealed(self.gamma_init, self.gamma_final, i, self.steps)
        if self.norm == "l0":
            return _next_count(at.success, state.eps, state.nearest, gamma)
        grown, shrunk = (1 + gamma) * state.eps, (1 - gamma) * state.eps
        to_boundary = _distance_to_boundary(at, grad, self.norm)
        if self.published:
            first, inner = distance + to_boundary, torch.minimum(shrunk, state.nearest)
        else:
            first = torch.maximum(distance + FIRST_STEP_FACTOR * to_boundary, grown)
            inner = torch.minimum(shrunk, (1 - gamma) * state.nearest)
        return torch.where(at.success, inner, torch.where(state.nearest.isinf(), first, grown))

    def _to_radius(self, delta: Tensor, eps: Tensor) -> Tensor:
        """Return `delta` `(n, *features)` with norms of at most `eps` `(n,)`, in l2 equal to it."""
        if self.norm == "l0":
            return keep_largest(delta, eps)
        if self.norm == "l2":
            return normalize(delta, "l2") * per_sample(eps, delta)
        return project(delta, eps, self.norm)


def _distance_to_boundary(at: Iterate, grad: Tensor, norm: Norm) -> Tensor:
    """Return the distance `(n,)` to the boundary of the linearized objective, inf without slope."""
    slope = lp_norm(grad, DUAL[norm])
    gap = at.value.detach().abs().to(slope.dtype)
    return torch.where(slope > 0, gap / slope, math.inf)


def _next_count(success: Tensor, count: Tensor, nearest: Tensor, gamma: float) -> Tensor:
    """Return the number of features `(n,)` of the next iterates, at least 1.

    Args:
        success: mask of the iterates that are successes, `(n,)`.
        count: number of features of the iterates, `(n,)`.
        nearest: fewest features of a success, inf without one, `(n,)`.
        gamma: share by which the number changes, rounded down; it changes by at least 1.
    """
    fewer = torch.minimum(count - 1, ((1 - gamma) * count).floor())
    more = torch.maximum(count + 1, ((1 + gamma) * count).floor())
    return torch.where(success, torch.minimum(fewer, nearest), more).clamp_min(1)
