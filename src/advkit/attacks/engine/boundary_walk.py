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
from advkit.core.norms import DUAL, Norm, lp_norm, per_sample
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
    trial_steps: int = 7  # before a walk is given up; five leave 2 % more of a robust net
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
# Norm in which a step from the iterate is shortest. The way to the input is measured in the norm of
# the problem; in l0 a step from an iterate of many changed features has no direction.
STEP_NORM: dict[Norm, Norm] = {"l0": "l2", "l1": "l1", "l2": "l2", "linf": "linf"}


class _State(NamedTuple):
    """State of each sample from step to step."""

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
        overshoot = 0 if self.published else TUNING.initial_overshoot
        return iterate(
            problem,
            start,
            _initial_state(problem.x, limit, overshoot),
            self._step,
            steps=len(self.fractions),
            best=nearest,
            finished=lambda _, state: state.finished,
            within=eps,
        )

    def _step(self, i: int, problem: Problem, at: Iterate, state: _State) -> tuple[Tensor, _State]:
        norm, bounds, x = problem.norm, problem.model.bounds, at_least_float32(problem.x)
        before = at_least_float32(at.x_adv - problem.x)
        distance = lp_norm(before, norm)
        delta, unit, gap, invalid = self._plane(i, problem, at, before)
        state = self._updated(i, at, distance, state, invalid)
        gap = gap + state.overshoot * torch.maximum(_depth(norm, before, unit, distance), gap)
        to_plane = _onto_plane(norm, x + delta, unit, gap, bounds)
        # the projection of the input onto the plane with the mean normal through the same point
        normal = unit if self.published else unit.lerp(state.normal, TUNING.normal_momentum)
        level = (normal * (delta + to_plane)).flatten(1).sum(1)
        projection = project_onto_plane_and_box(x, *_scaled(normal, level, norm), norm, bounds)
        move = self._between(i, norm, delta, to_plane, projection)
        return problem.clip(move.add_(x)), state._replace(normal=normal)

    def _plane(
        self, i: int, problem: Problem, at: Iterate, delta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Move successes back, and approximate the boundary by a plane.

        The adaptive walk keeps the plane of the success. The published walk evaluates the success
        again after the backward step.

        Returns:
            The perturbations after the backward step and the normals of dual norm 1, both
            `(n, *features)`; the gaps from there to the planes `(n,)`; and a mask `(n,)` of the
            samples without a plane, whose normal and gap are 0.
        """
        if self.published:
            delta, grad, gap = _plane_after_moving_back(problem, at, delta)
        else:
            grad = at_least_float32(problem.ascent_direction(at))
            gap = -at.value.detach().to(grad.dtype)
            back = TUNING.backward * self.fractions[i] * at.success.to(grad.dtype)
            gap = gap + back * (grad * delta).flatten(1).sum(1)
            delta = delta * per_sample(1 - back, delta)
        invalid = (lp_norm(grad, "linf") <= 0) | ~gap.isfinite()
        normal, gap = _scaled(grad, gap.masked_fill(invalid, 0), problem.norm)
        return delta, normal, gap, invalid

    def _between(
        self, i: int, norm: Norm, delta: Tensor, to_plane: Tensor, projection: Tensor
    ) -> Tensor:
        """Return the next perturbations, between the plane and the projection of the input."""
        if not self.published:
            return (delta + to_plane).lerp_(projection, self.fractions[i])
        here = lp_norm(to_plane, norm).clamp_min(PUBLISHED.min_length)
        there = lp_norm(projection, norm).clamp_min(PUBLISHED.min_length)
        fraction = (here / (here + there)).clamp_max(self.fractions[i])
        on_plane = delta + PUBLISHED.eta * to_plane
        return on_plane.lerp_(PUBLISHED.eta * projection, per_sample(fraction, delta))

    def _updated(
        self, i: int, at: Iterate, distance: Tensor, state: _State, invalid: Tensor
    ) -> _State:
        """Return the state after step `i`; samples that are `invalid` have no gradient."""
        nearest = torch.where(at.success, torch.minimum(distance, state.nearest), state.nearest)
        finished, known = invalid, nearest.isfinite()
        if i >= TUNING.trial_steps - 1:
            finished = finished | (known & (nearest > state.limit))
        if not self.patient and i and i % TUNING.patience == 0:
            finished = finished | (known & (nearest > (1 - TUNING.min_gain) * state.reference))
            state = state._replace(reference=nearest)
        if not self.published:
            factor = torch.where(at.success, TUNING.overshoot_decay, TUNING.overshoot_growth)
            overshoot = state.overshoot * factor.to(distance.dtype)
            overshoot = overshoot.clamp(TUNING.min_overshoot, TUNING.max_overshoot)
            state = state._replace(overshoot=overshoot)
        return state._replace(nearest=nearest, finished=finished)


def _initial_state(x: Tensor, limit: Tensor, overshoot: float) -> _State:
    """Return the state before the first step."""
    infinite = torch.full_like(limit, math.inf)
    return _State(
        limit=limit,
        nearest=infinite,
        reference=infinite,
        normal=torch.zeros_like(at_least_float32(x)),
        overshoot=torch.full_like(limit, overshoot),
        finished=torch.zeros_like(limit, dtype=torch.bool),
    )


def _onto_plane(
    norm: Norm, x_adv: Tensor, unit: Tensor, gap: Tensor, bounds: tuple[float, float]
) -> Tensor:
    """Return the shortest step from `x_adv` onto the plane, in l0 the one along the normal.

    In l0 the bounds do not matter here: an iterate has most of its changed features at them.
    """
    if norm == "l0":
        return unit * per_sample(gap, unit)
    return project_onto_plane_and_box(x_adv, unit, gap, norm, bounds)


def _depth(norm: Norm, delta: Tensor, unit: Tensor, distance: Tensor) -> Tensor:
    """Return the distance `(n,)` to which an overshoot is relative; in l0 that along the normal."""
    return (unit * delta).flatten(1).sum(1).abs() if norm == "l0" else distance


def _scaled(normal: Tensor, gap: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """Return the plane with its normal scaled to dual norm 1, which makes `gap` a distance."""
    slope = lp_norm(normal, DUAL[STEP_NORM[norm]])
    slope = slope.where(slope > 0, 1)
    return normal / per_sample(slope, normal), gap / slope


def _plane_after_moving_back(
    problem: Problem, at: Iterate, delta: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Move successes back, and differentiate at the new points; only successes are evaluated."""
    moved = at.success
    delta = delta * per_sample(1 - (1 - PUBLISHED.beta) * moved.to(delta.dtype), delta)
    grad, gap = torch.zeros_like(delta), torch.zeros_like(delta.flatten(1)[:, 0])
    for rows in (moved, ~moved):
        if not rows.any():
            continue
        part = problem.select(rows)
        if rows is moved:
            point = part.forward(part.clip(part.x + delta[rows]), differentiate=True)
        else:
            point = problem.select_for_backward(at, rows)
        grad[rows] = part.ascent_direction(point).to(grad.dtype)
        gap[rows] = -point.value.detach().to(gap.dtype)
    return delta, grad, gap


def cosine_fractions(steps: int) -> list[float]:
    """Return the fraction of each step: half a cosine from the first to the last fraction."""
    first, last = TUNING.first_fraction, TUNING.last_fraction
    angles = (math.pi * i / max(1, steps - 1) for i in range(steps))
    return [last + (first - last) * (1 + math.cos(angle)) / 2 for angle in angles]
