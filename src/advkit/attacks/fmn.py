"""Fast minimum-norm attack."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.loop import iterate
from advkit.attacks.engine.minimum_norm import MinimumNormAttack
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Nearest
from advkit.attacks.engine.schedules import SCHEDULES, Schedule
from advkit.attacks.engine.unit_steps import (
    cosine_annealed,
    longest_delta,
    perturbed,
    unit_delta,
    unit_gradient,
)
from advkit.core import checks
from advkit.core.norms import (
    DUAL,
    ORDER,
    Norm,
    largest_first,
    lp_norm,
    normalize,
    per_sample,
    project,
)

FINAL_SHARE = 0.01  # published: last step length over the first one
FIRST_STEP_FACTOR = 1.001  # until the first success, over the distance to the boundary: rounding


class _State(NamedTuple):
    """State of each sample from step to step."""

    eps: Tensor  # (n,), radius of the ball, in widths of the bounds, or features in l0
    nearest: Tensor  # (n,), distance of the nearest success in the same unit, inf without one
    finished: Tensor  # bool (n,), no further step can bring it nearer


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FMN(MinimumNormAttack):
    """Fast minimum-norm attack (Pintor et al., 2021, arXiv:2102.12827).

    A cheap search in each of the four norms. Each step follows the normalized gradient of the
    difference of logits and projects the perturbation onto a ball, whose radius adapts. Until the
    first success the radius is the estimated distance to the boundary. After that it shrinks after
    a success and grows after a failure, by a factor that comes closer to 1. In l0 the radius is a
    number of features, and changes by at least one.

    Use it as a second opinion on `FAB`, and in l0, which `FAB` does not have, on `SigmaZero`. The
    best `alpha_init` depends on the net: in l2, a tenth of the default is 2 % nearer in the mean on
    a ResNet-20, whose boundary is near, and 1.5 % farther on a LeNet.

    Lengths are in widths of the bounds, so that they have the same meaning for all bounds.

    Deviations from the paper, the first two of which `schedule="published"` does not have:

    - Until the first success the radius is longer than the estimate by a thousandth of the distance
      to the boundary, and grows by at least the share by which it grows later. The estimate takes
      no account of the bounds, and may lead to the boundary without crossing it: in the published
      schedule, 14 % of the images of a LeNet are not fooled in l2, and 9 % in l1.
    - After a success the radius is shorter than the distance of the nearest success, instead of
      equal to it.
    - It begins at the input. The optional start at other points, and the binary search between
      them and the input, are left out.
    - The last iterate is evaluated too, at the cost of one forward pass.
    - In l2 a perturbation shorter than the radius is scaled up to it, which fails less often.
    - In l0 at least one feature is kept, and of features that change equally the first ones. A
      sample of which one feature is enough is finished.
    - A sample that is not a success and whose gradient is zero is finished, and reported.

    Args:
        norm: `"l2"`, `"linf"`, `"l1"` or `"l0"`, of the distance.
        steps: gradient steps; each costs one forward and one backward pass.
        alpha_init: length of the first step in l2, in widths of the bounds. The length falls along
            a cosine.
        alpha_final: length of the last step; `None` takes a hundredth of `alpha_init`.
        gamma_init: share by which the radius changes at first, in (0, 1). It falls along a cosine.
        gamma_final: share by which the radius changes in the end, in [0, 1).
        schedule: `"adaptive"`, or `"published"` for the radii of the paper. Where logits are
            linear, these end on the boundary itself, and rounding decides about success. In l0 the
            two are the same.
        progress: show a progress bar (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.

    Example:
        >>> import torch
        >>> from advkit import attacks
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> result = attacks.FMN(norm="linf").run(net, torch.rand(5, 1, 8, 8))
        >>> bool(result.success.all()), result.norm
        (True, 'linf')
    """

    norm: Norm = "l2"
    steps: int = 100
    alpha_init: float = 1.0
    alpha_final: float | None = None
    gamma_init: float = 0.05
    gamma_final: float = 0.001
    schedule: Schedule = "adaptive"
    progress: bool = False

    def __post_init__(self) -> None:
        checks.one_of("norm", self.norm, tuple(ORDER))
        checks.integer("steps", self.steps, at_least=1)
        checks.positive("alpha_init", self.alpha_init)
        if self.alpha_final is not None:
            checks.positive("alpha_final", self.alpha_final)
        checks.fraction("gamma_init", self.gamma_init, "(0, 1)")
        checks.fraction("gamma_final", self.gamma_final, "[0, 1)")
        checks.one_of("schedule", self.schedule, SCHEDULES)
        checks.boolean("progress", self.progress)

    def _total_steps(self, problem: Problem) -> int:
        return self.steps

    def _search_nearest(self, problem: Problem, at: Iterate) -> Nearest:
        nearest = Nearest.empty(problem.x)
        radius = 1.0 if self.norm == "l0" else 0.0
        return iterate(
            problem,
            problem.x,
            _State(
                eps=torch.full_like(nearest.distance, radius),
                nearest=nearest.distance.clone(),
                finished=torch.zeros_like(nearest.success),
            ),
            self._step,
            steps=self.steps,
            best=nearest,
            finished=lambda _, state: state.finished,
        )

    def _step(self, i: int, problem: Problem, at: Iterate, state: _State) -> tuple[Tensor, _State]:
        last = FINAL_SHARE * self.alpha_init if self.alpha_final is None else self.alpha_final
        alpha = cosine_annealed(self.alpha_init, last, i, self.steps)
        grad, delta = unit_gradient(problem, at), unit_delta(problem, at.x_adv)
        distance = lp_norm(delta, self.norm)
        nearest = torch.where(at.success, torch.minimum(distance, state.nearest), state.nearest)
        state = state._replace(nearest=nearest)
        eps = self._next_eps(i, at, grad, distance, state)
        eps = torch.minimum(eps, longest_delta(problem, self.norm))
        finished = ~at.success & (lp_norm(grad, "linf") == 0)
        if self.norm == "l0":
            finished |= nearest <= 1
        delta = self._to_radius(delta.add_(normalize(grad, "l2"), alpha=alpha), eps)
        return perturbed(problem, delta), _State(eps, nearest, finished)

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
        if self.schedule == "published":
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


def keep_largest(delta: Tensor, count: Tensor) -> Tensor:
    """Return `delta` `(n, *features)` with all but the `count` `(n,)` largest entries set to 0.

    Of equal magnitudes the first features are kept, whatever the rest of the batch.
    """
    size = delta.flatten(1).abs()
    last = count.long()[:, None] - 1
    ordered, _ = largest_first(size, lambda top, _: last[:, 0] < top.shape[1])
    threshold = ordered.gather(1, last)
    above, equal = size > threshold, size == threshold
    room = last + 1 - above.sum(1, keepdim=True)
    kept = above | (equal & (equal.cumsum(1) <= room))
    return torch.where(kept.view_as(delta), delta, 0)
