"""Fast adaptive boundary attack."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.loop import iterate
from advkit.attacks.engine.minimum_norm import MinimumNormAttack, candidates
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Nearest
from advkit.core import checks
from advkit.core.norms import DUAL, Norm, lp_norm, per_sample
from advkit.core.tensors import at_least_float32


@dataclass(frozen=True)
class Tuning:
    """Constants of the walk, measured on the nets of docs/performance.md; none is sensitive."""

    first_fraction: float = 0.5  # of the way to the projection, first step of a walk from the input
    refine_fraction: float = 0.2  # the same of the walk that continues from the nearest success
    last_fraction: float = 0.01  # the same at the last step
    normal_momentum: float = 0.8  # weight of the previous normals in their running mean
    initial_overshoot: float = 0.02  # share of the distance that a step goes past the boundary
    min_overshoot: float = 1e-3
    max_overshoot: float = 2.0
    overshoot_decay: float = 0.7  # factor of the overshoot after a success
    overshoot_growth: float = 1.3  # and after a failure
    min_steps: int = 5  # for each candidate class
    hopeless_ratio: float = 1.2  # a class is given up at this multiple of the nearest distance
    patience: int = 10  # steps in which the distance must shrink
    min_gain: float = 1e-3  # by this share


TUNING = Tuning()


class _Walk(NamedTuple):
    """State of each sample from step to step."""

    normal: Tensor  # (n, *features), running mean of the boundary's normals, of dual norm 1 each
    overshoot: Tensor  # (n,), share of the distance that a step goes past the boundary
    limit: Tensor  # (n,), the distance at which this walk is given up
    nearest: Tensor  # (n,), distance of the nearest success of this walk, inf without one
    reference: Tensor  # (n,), the same, `patience` steps ago
    finished: Tensor  # bool (n,), no further step


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FAB(MinimumNormAttack):
    """Fast adaptive boundary attack (Croce and Hein, 2020, arXiv:1907.02044), for everyday use.

    The attack finds near adversarial examples in about 100 passes. Each step approximates the
    decision boundary by the plane that the gradient at the iterate gives, moves onto that plane,
    and then part of the way to the plane's point nearest to the input. The walk thus follows the
    boundary towards the input. As in the targeted form of the paper, it aims at the likeliest
    classes one after another. Half of the steps go to these walks, the other half to a walk that
    continues from the nearest success. A walk ends early if it cannot come nearer than the nearest
    success, or if it has stopped coming nearer.

    Deviations from the paper:

    - The plane's normal is a running mean over the steps, which carries the walk across the kinks
      of nets with ReLU and max-pooling.
    - The overshoot grows after a failure and shrinks after a success; it is 1.05 in the paper.
    - The fraction of the way back follows a cosine schedule instead of two distances.
    - The box constraint is met by leaving out features at a bound that a step would push outward,
      and by clipping, instead of inside the projection.
    - There is no backward step, and there are no random restarts.

    Args:
        norm: `"l2"` or `"linf"`, of the distance.
        steps: gradient steps in total; each costs at most one forward and one backward pass.
        candidates: greatest number of classes to aim at; fewer where `steps` would leave less than
            five for each. A targeted attack ignores it.
        progress: show a progress bar (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.

    Example:
        >>> import torch
        >>> from advkit import attacks
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> result = attacks.FAB().run(net, torch.rand(5, 1, 8, 8))
        >>> bool(result.success.all()), result.norm
        (True, 'l2')
    """

    norm: Norm = "l2"
    steps: int = 100
    candidates: int = 5
    progress: bool = False
    _refine_steps: ClassVar[int] = 2

    def __post_init__(self) -> None:
        checks.one_of("norm", self.norm, tuple(DUAL))
        checks.integer("steps", self.steps, at_least=1)
        checks.integer("candidates", self.candidates, at_least=1)
        checks.boolean("progress", self.progress)

    def _search_nearest(self, problem: Problem, at: Iterate) -> Nearest:
        """Walk to one class after another from the inputs, then from the nearest success."""
        nearest = Nearest.empty(problem.x)
        max_classes = min(self.candidates, self.steps // (2 * TUNING.min_steps))
        classes = candidates(at, problem.goal, max_classes)
        each = self.steps // (2 * len(classes)) if len(classes) > 1 else 0
        fractions = _step_schedule(TUNING.first_fraction, each)
        for candidate in classes if each else ():
            limit = TUNING.hopeless_ratio * nearest.distance
            nearest = self._walk(problem, candidate, problem.x, limit, fractions, nearest)
        first = TUNING.refine_fraction if each else TUNING.first_fraction
        fractions = _step_schedule(first, self.steps - each * len(classes))
        no_limit = torch.full_like(nearest.distance, math.inf)
        return self._walk(problem, None, nearest.x_adv, no_limit, fractions, nearest)

    def _total_steps(self, problem: Problem) -> int:
        return self.steps

    def _walk(
        self,
        problem: Problem,
        candidate: Tensor | None,
        start: Tensor,
        limit: Tensor,
        fractions: list[float],
        nearest: Nearest,
    ) -> Nearest:
        """Walk from `start` to the class `candidate`, `None` for the best one, within `limit`."""
        walk = _initial_walk(problem, limit)

        def step(i: int, problem: Problem, at: Iterate, walk: _Walk) -> tuple[Tensor, _Walk]:
            return self._step(i, fractions[i], problem, at, walk)

        return iterate(
            problem.with_candidate(candidate),
            start,
            walk,
            step,
            steps=len(fractions),
            best=nearest,
            finished=lambda _, walk: walk.finished,
        )

    def _step(
        self, i: int, fraction: float, problem: Problem, at: Iterate, walk: _Walk
    ) -> tuple[Tensor, _Walk]:
        grad = problem.drop_active_bounds(at.x_adv, problem.ascent_direction(at))
        grad = at_least_float32(grad)
        delta = at_least_float32(at.x_adv - problem.x)
        distance, slope = lp_norm(delta, self.norm), lp_norm(grad, DUAL[self.norm])
        gap = -at.value.detach().to(slope.dtype)
        invalid = ~((slope > 0) & gap.isfinite())
        slope, gap = slope.where(~invalid, 1), gap.where(~invalid, 0)
        walk = _update_progress(i, at, distance, walk, invalid)
        to_plane = gap / slope
        to_plane = to_plane + walk.overshoot * torch.maximum(distance, to_plane)
        unit = grad / per_sample(slope, grad)  # of dual norm 1
        on_plane = delta.add_(self._steepest(unit) * per_sample(to_plane, grad))
        normal = unit.lerp_(walk.normal, TUNING.normal_momentum)
        # the projection of the input onto the plane through `on_plane` with this normal
        level = (normal * on_plane).flatten(1).sum(1)
        width = lp_norm(normal, DUAL[self.norm]).clamp_min(torch.finfo(grad.dtype).tiny)
        direction = self._steepest(normal / per_sample(width, grad))
        projection = direction * per_sample(level / width, grad)
        x_adv = problem.clip(on_plane.lerp_(projection, fraction).add_(problem.x))
        return x_adv, walk._replace(normal=normal)

    def _steepest(self, unit: Tensor) -> Tensor:
        """Return the direction of length 1 to a plane with the normal `unit` of dual norm 1."""
        return unit.sign() if self.norm == "linf" else unit


def _step_schedule(first: float, steps: int) -> list[float]:
    """Return the fraction of each step: half a cosine from `first` down to the last fraction."""
    last = TUNING.last_fraction
    angles = (math.pi * i / max(1, steps - 1) for i in range(steps))
    return [last + (first - last) * (1 + math.cos(angle)) / 2 for angle in angles]


def _initial_walk(problem: Problem, limit: Tensor) -> _Walk:
    return _Walk(
        normal=torch.zeros_like(at_least_float32(problem.x)),
        overshoot=torch.full_like(limit, TUNING.initial_overshoot),
        limit=limit,
        nearest=torch.full_like(limit, math.inf),
        reference=torch.full_like(limit, math.inf),
        finished=torch.zeros_like(limit, dtype=torch.bool),
    )


def _update_progress(i: int, at: Iterate, distance: Tensor, walk: _Walk, invalid: Tensor) -> _Walk:
    """Return the walk after step `i`; samples that are `invalid` have no gradient."""
    nearest = torch.where(at.success, torch.minimum(distance, walk.nearest), walk.nearest)
    finished, reference, known = invalid, walk.reference, nearest.isfinite()
    if i >= TUNING.min_steps - 1:
        finished = finished | (known & (nearest > walk.limit))
    if i and i % TUNING.patience == 0:
        finished = finished | (known & (nearest > (1 - TUNING.min_gain) * reference))
        reference = nearest
    factor = torch.where(at.success, TUNING.overshoot_decay, TUNING.overshoot_growth)
    overshoot = (walk.overshoot * factor).clamp(TUNING.min_overshoot, TUNING.max_overshoot)
    return walk._replace(
        overshoot=overshoot, nearest=nearest, reference=reference, finished=finished
    )
