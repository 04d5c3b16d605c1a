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

# The pace of a walk, measured on the nets of the documentation; none of these is delicate.
_EXPLORE, _REFINE, _LAST = 0.5, 0.2, 0.01  # share of the way to the nearest point of the plane
_MEMORY = 0.8  # weight of the normals before
_OVER, _LEAST_OVER, _MOST_OVER = 0.02, 1e-3, 2.0  # how far past the boundary to aim
_LESS, _MORE = 0.7, 1.3  # what becomes of that after a success and after a failure
_SHORTEST = 5  # steps that one rival gets at least
_HOPELESS = 1.2  # times the nearest success so far: such a rival is given up
_PATIENCE, _GAIN = 10, 1e-3  # steps in which the distance must shrink by this share


class _Walk(NamedTuple):
    """What each sample carries from step to step."""

    normal: Tensor  # (n, *features), running mean of the boundary's normals, of dual norm 1 each
    over: Tensor  # (n,), how far past the boundary to aim, as a share of the distance
    limit: Tensor  # (n,), the distance beyond which this walk is hopeless
    nearest: Tensor  # (n,), distance of its nearest success, inf without one
    before: Tensor  # (n,), the same some steps ago
    closed: Tensor  # bool (n,), not worth another step


@dataclass(frozen=True, kw_only=True, repr=False)
class FAB(MinimumNormAttack):
    """Fast adaptive boundary attack (Croce and Hein, 2020, arXiv:1907.02044), for everyday use.

    The answer to "how far is the nearest adversarial example" for about 100 passes. Each step
    takes the decision boundary for the plane that the gradient at the iterate says it is, moves
    onto that plane, and from there part of the way to the plane's point nearest to the input, so
    that the walk slides along the boundary towards the input. As in the targeted form of the paper
    the likeliest classes are walked to one after another; half of the steps go to that, the other
    half to a walk on from the nearest success.

    Deviations: the plane's normal is a running mean over the steps, which is what carries the walk
    over the kinks of nets with ReLU and max-pooling; the overshoot grows after a failure and
    shrinks after a success instead of being 1.05; the share of the way back falls along a cosine
    instead of following from two distances; the box is kept by leaving out features at a bound that
    a step would push out, and by clipping, instead of inside the projection; no backward step and
    no random restarts. A walk that has no hope of coming nearer than what is found, or that has
    stopped coming nearer, ends before its time.

    Args:
        norm: `"l2"` or `"linf"`, of the distance.
        steps: gradient steps in all; each costs one forward and one backward pass at most.
        candidates: how many classes to walk to, at most; fewer where `steps` would leave less than
            five for each. Without meaning for a targeted attack.
        progress: show a bar (needs the extra `report`).

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
        """Walk to one class after another from the inputs, then on from the nearest success."""
        nearest = Nearest.empty(problem.x)
        classes = candidates(at, problem.goal, min(self.candidates, self.steps // (2 * _SHORTEST)))
        each = self.steps // (2 * len(classes)) if len(classes) > 1 else 0
        pace = _pace(_EXPLORE, each)
        for candidate in classes if each else ():
            limit = _HOPELESS * nearest.distance
            nearest = self._walk(problem, candidate, problem.x, limit, pace, nearest)
        rest = _pace(_REFINE if each else _EXPLORE, self.steps - each * len(classes))
        never = torch.full_like(nearest.distance, math.inf)
        return self._walk(problem, None, nearest.x_adv, never, rest, nearest)

    def _total_steps(self, problem: Problem) -> int:
        return self.steps

    def _walk(
        self,
        problem: Problem,
        candidate: Tensor | None,
        start: Tensor,
        limit: Tensor,
        pace: list[float],
        nearest: Nearest,
    ) -> Nearest:
        """Walk from `start` to the class `candidate`, `None` for the best; end beyond `limit`."""
        walk = _begin(problem, limit)
        towards = problem.with_candidate(candidate)

        def step(i: int, problem: Problem, at: Iterate, walk: _Walk) -> tuple[Tensor, _Walk]:
            return self._step(i, pace[i], problem, at, walk)

        return iterate(
            towards,
            start,
            walk,
            step,
            steps=len(pace),
            best=nearest,
            finished=lambda _, walk: walk.closed,
        )

    def _step(
        self, i: int, share: float, problem: Problem, at: Iterate, walk: _Walk
    ) -> tuple[Tensor, _Walk]:
        grad = at_least_float32(problem.drop_active_bounds(at.x_adv, problem.ascent_direction(at)))
        delta = at_least_float32(at.x_adv - problem.x)
        distance, slope = lp_norm(delta, self.norm), lp_norm(grad, DUAL[self.norm])
        gap = -at.value.detach().to(slope.dtype)
        lost = ~((slope > 0) & gap.isfinite())
        slope, gap = slope.where(~lost, 1), gap.where(~lost, 0)
        walk = _watched(i, at, distance, walk, lost)
        ahead = gap / slope
        ahead = ahead + walk.over * torch.maximum(distance, ahead)
        unit = grad / per_sample(slope, grad)  # of dual norm 1
        on_plane = delta.add_(self._straight(unit) * per_sample(ahead, grad))
        normal = unit.lerp_(walk.normal, _MEMORY)
        # the nearest point to the input on the plane through `on_plane` with this normal
        level = (normal * on_plane).flatten(1).sum(1)
        width = lp_norm(normal, DUAL[self.norm]).clamp_min(torch.finfo(grad.dtype).tiny)
        foot = self._straight(normal / per_sample(width, grad)) * per_sample(level / width, grad)
        x_adv = problem.clip(on_plane.lerp_(foot, share).add_(problem.x))
        return x_adv, walk._replace(normal=normal)

    def _straight(self, unit: Tensor) -> Tensor:
        """The direction of length 1 in which a plane with normal `unit` of dual norm 1 is met."""
        return unit.sign() if self.norm == "linf" else unit


def _pace(first: float, steps: int) -> list[float]:
    """The share of the way to go in each step: half a cosine from `first` down to the last."""
    turns = (math.pi * i / max(1, steps - 1) for i in range(steps))
    return [_LAST + (first - _LAST) * (1 + math.cos(turn)) / 2 for turn in turns]


def _begin(problem: Problem, limit: Tensor) -> _Walk:
    return _Walk(
        normal=torch.zeros_like(at_least_float32(problem.x)),
        over=torch.full_like(limit, _OVER),
        limit=limit,
        nearest=torch.full_like(limit, math.inf),
        before=torch.full_like(limit, math.inf),
        closed=torch.zeros_like(limit, dtype=torch.bool),
    )


def _watched(i: int, at: Iterate, distance: Tensor, walk: _Walk, lost: Tensor) -> _Walk:
    """The walk with what step `i` has shown of its prospects; `lost` samples have no gradient."""
    nearest = torch.where(at.success, torch.minimum(distance, walk.nearest), walk.nearest)
    closed, before, known = lost, walk.before, nearest.isfinite()
    if i >= _SHORTEST - 1:
        closed = closed | (known & (nearest > walk.limit))
    if i and i % _PATIENCE == 0:
        closed = closed | (known & (nearest > (1 - _GAIN) * before))
        before = nearest
    over = walk.over * torch.where(at.success, _LESS, _MORE)
    return walk._replace(
        over=over.clamp(_LEAST_OVER, _MOST_OVER), nearest=nearest, before=before, closed=closed
    )
