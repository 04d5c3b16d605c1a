"""Walk along the decision boundary towards the input, the search of FAB."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.loop import iterate
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Nearest
from advkit.core.box_projections import project_onto_plane_and_box
from advkit.core.norms import DUAL, lp_norm, per_sample
from advkit.core.tensors import at_least_float32


@dataclass(frozen=True)
class Tuning:
    """Constants of the adaptive walk, measured on the nets of docs/results.md."""

    first_fraction: float = 0.5  # of the way to the input's projection, at the first step
    last_fraction: float = 0.01  # and at the last step
    backward: float = 0.2  # a success is moved back by this share of the fraction
    normal_momentum: float = 0.8  # weight of the previous normals in their running mean
    initial_overshoot: float = 0.02  # share of the distance that a step goes past the boundary
    min_overshoot: float = 1e-3
    max_overshoot: float = 2.0
    overshoot_decay: float = 0.7  # factor of the overshoot after a success
    overshoot_growth: float = 1.3  # and after a failure
    min_steps: int = 5  # before a walk is given up
    patience: int = 10  # steps in which the distance must shrink
    min_gain: float = 1e-3  # by this share


@dataclass(frozen=True)
class Published:
    """Constants of the paper's walk."""

    eta: float = 1.05  # length of a step over the distance to the plane
    max_fraction: float = 0.1  # of the way to the input's projection
    beta: float = 0.9  # distance of a success after the backward step, over that before it
    min_length: float = 1e-8  # of a projection


TUNING = Tuning()
PUBLISHED = Published()


class _State(NamedTuple):
    """State of each sample from step to step."""

    x: Tensor  # (n, *features), clean inputs
    eps: Tensor  # (n,), a success within this distance ends the walk
    limit: Tensor  # (n,), the walk is given up while its nearest success is farther than this
    nearest: Tensor  # (n,), distance of the nearest success of this walk, inf without one
    reference: Tensor  # (n,), the same, `patience` steps ago
    normal: Tensor  # (n, *features), running mean of the boundary's normals, of dual norm 1 each
    overshoot: Tensor  # (n,), share of the distance that a step goes past the boundary
    finished: Tensor  # bool (n,), no further step


@dataclass(frozen=True, kw_only=True)
class BoundaryWalk:
    """Walk along the boundary: onto its plane, then part of the way to the input's projection.

    Attributes:
        fractions: the part of the way at each step; in the published walk its greatest value.
        patient: whether to take all steps, also if the distance no longer shrinks.
        published: whether the steps are those of the paper: a fraction from the lengths of the two
            projections, a constant overshoot, the normal of the current plane alone, and a backward
            step after which the success is evaluated again.
    """

    fractions: Sequence[float]
    patient: bool = False
    published: bool = False

    def search(
        self,
        problem: Problem,
        start: Tensor,
        nearest: Nearest,
        *,
        limit: Tensor,
        eps: Tensor | None,
    ) -> Nearest:
        """Return `nearest` with the successes of a walk that are nearer.

        Args:
            problem: `n` samples; their `candidate` is the class to walk to.
            start: first iterates, `(n, *features)`.
            nearest: record of these samples so far.
            limit: distance above which a walk that has succeeded is given up, `(n,)`.
            eps: distance at which a success ends the walk, `(n,)`, or `None`.
        """
        state = _State(
            x=problem.x,
            eps=torch.zeros_like(limit) if eps is None else eps,
            limit=limit,
            nearest=torch.full_like(limit, math.inf),
            reference=torch.full_like(limit, math.inf),
            normal=torch.zeros_like(at_least_float32(problem.x)),
            overshoot=torch.full_like(limit, 0 if self.published else TUNING.initial_overshoot),
            finished=torch.zeros_like(limit, dtype=torch.bool),
        )

        def finished(at: Iterate, state: _State) -> Tensor:
            if eps is None:
                return state.finished
            distance = lp_norm(at_least_float32(at.x_adv) - at_least_float32(state.x), problem.norm)
            return state.finished | (at.success & (distance <= state.eps))

        steps = len(self.fractions)
        return iterate(
            problem, start, state, self._step, steps=steps, best=nearest, finished=finished
        )

    def _step(self, i: int, problem: Problem, at: Iterate, state: _State) -> tuple[Tensor, _State]:
        norm, bounds, x = problem.norm, problem.model.bounds, at_least_float32(problem.x)
        before = at_least_float32(at.x_adv - problem.x)
        distance = lp_norm(before, norm)
        delta, grad, gap = self._plane(i, problem, at, before)
        slope = lp_norm(grad, DUAL[norm])
        invalid = ~((slope > 0) & gap.isfinite())
        slope, gap = slope.where(~invalid, 1), gap.where(~invalid, 0)
        state = self._updated(i, at, distance, state, invalid)
        unit, gap = grad / per_sample(slope, grad), gap / slope
        gap = gap + state.overshoot * torch.maximum(distance, gap)
        to_plane = project_onto_plane_and_box(x + delta, unit, gap, norm, bounds)
        # the projection of the input onto the plane with the mean normal through the same point
        normal = unit if self.published else unit.lerp(state.normal, TUNING.normal_momentum)
        width = lp_norm(normal, DUAL[norm]).clamp_min(torch.finfo(grad.dtype).tiny)
        level = (normal * (delta + to_plane)).flatten(1).sum(1) / width
        projection = project_onto_plane_and_box(
            x, normal / per_sample(width, grad), level, norm, bounds
        )
        move = self._between(i, problem, delta, to_plane, projection)
        return problem.clip(move.add_(x)), state._replace(normal=normal)

    def _plane(
        self, i: int, problem: Problem, at: Iterate, delta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Move successes back, and approximate the boundary by a plane.

        The adaptive walk keeps the plane of the success. The published walk evaluates the success
        again after the backward step.

        Returns:
            The perturbations after the backward step and the normals, `(n, *features)`, and the
            gaps in logits from there to the planes, `(n,)`.
        """
        if self.published:
            return _plane_after_moving_back(problem, at, delta)
        grad = at_least_float32(problem.ascent_direction(at))
        gap = -at.value.detach().to(grad.dtype)
        back = torch.where(at.success, TUNING.backward * self.fractions[i], 0).to(grad.dtype)
        gap = gap + back * (grad * delta).flatten(1).sum(1)
        return delta * per_sample(1 - back, delta), grad, gap

    def _between(
        self, i: int, problem: Problem, delta: Tensor, to_plane: Tensor, projection: Tensor
    ) -> Tensor:
        """Return the next perturbations, between the plane and the projection of the input."""
        if not self.published:
            return (delta + to_plane).lerp_(projection, self.fractions[i])
        lengths = [
            lp_norm(step, problem.norm).clamp_min(PUBLISHED.min_length)
            for step in (to_plane, projection)
        ]
        fraction = (lengths[0] / (lengths[0] + lengths[1])).clamp_max(self.fractions[i])
        on_plane = delta + PUBLISHED.eta * to_plane
        return on_plane.lerp_(PUBLISHED.eta * projection, per_sample(fraction, delta))

    def _updated(
        self, i: int, at: Iterate, distance: Tensor, state: _State, invalid: Tensor
    ) -> _State:
        """Return the state after step `i`; samples that are `invalid` have no gradient."""
        nearest = torch.where(at.success, torch.minimum(distance, state.nearest), state.nearest)
        finished, overshoot = invalid, state.overshoot
        if i >= TUNING.min_steps - 1:
            finished = finished | (nearest.isfinite() & (nearest > state.limit))
        if not self.patient and i and i % TUNING.patience == 0:
            gained = nearest <= (1 - TUNING.min_gain) * state.reference
            finished = finished | (nearest.isfinite() & ~gained)
            state = state._replace(reference=nearest)
        if not self.published:
            factor = torch.where(at.success, TUNING.overshoot_decay, TUNING.overshoot_growth)
            overshoot = (overshoot * factor).clamp(TUNING.min_overshoot, TUNING.max_overshoot)
        return state._replace(overshoot=overshoot, nearest=nearest, finished=finished)


def _plane_after_moving_back(
    problem: Problem, at: Iterate, delta: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Move successes back, and differentiate at the new points; only successes are evaluated."""
    moved = at.success
    delta = delta * per_sample(torch.where(moved, PUBLISHED.beta, 1).to(delta.dtype), delta)
    grad, gap = torch.zeros_like(delta), torch.zeros_like(delta.flatten(1)[:, 0])
    if not moved.all():
        point = problem.select_for_backward(at, ~moved)
        grad[~moved] = problem.select(~moved).ascent_direction(point).to(grad.dtype)
        gap[~moved] = -point.value.detach().to(gap.dtype)
    if moved.any():
        part = problem.select(moved)
        point = part.forward(part.clip(part.x + delta[moved]), differentiate=True)
        grad[moved] = part.ascent_direction(point).to(grad.dtype)
        gap[moved] = -point.value.detach().to(gap.dtype)
    return delta, grad, gap


def cosine_fractions(steps: int) -> list[float]:
    """Return the fraction of each step: half a cosine from the first to the last fraction."""
    first, last = TUNING.first_fraction, TUNING.last_fraction
    angles = (math.pi * i / max(1, steps - 1) for i in range(steps))
    return [last + (first - last) * (1 + math.cos(angle)) / 2 for angle in angles]
