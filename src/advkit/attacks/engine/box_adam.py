"""Adam in the box: the descent of Carlini and Wagner's attacks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.constant_search import PenaltyState
from advkit.attacks.engine.loop import iterate
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Nearest
from advkit.core.norms import lp_norm, per_sample
from advkit.core.tensors import at_least_float32

Schedule = Literal["adaptive", "published"]
SCHEDULES: tuple[Schedule, ...] = ("adaptive", "published")
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # of Adam
PUBLISHED_LR = 0.01
_STRETCH = 1.2  # how much wider than the box the range of tanh is
_PUBLISHED_STRETCH = 1 + 1e-6  # in the published schedule
_SAME = 0.9999  # an objective that does not fall below this share of itself no longer improves


class AdamState(NamedTuple):
    """What each sample carries from step to step."""

    w: Tensor  # (n, *features), the variable: x_adv lies tanh(w) half widths from the middle
    exp_avg: Tensor  # (n, *features), of the gradients
    exp_avg_sq: Tensor  # (n, *features), of their squares
    const: Tensor  # (n,), weight of the loss in the objective
    rate: Tensor  # (n,), learning rate at the first step
    least: Tensor  # (n,), least objective so far
    before: Tensor  # (n,), the least objective some steps ago
    closed: Tensor  # bool (n,), no longer improves


@dataclass(frozen=True, kw_only=True)
class BoxAdam:
    """Adam on |x_adv - x|^2 + const * max(confidence - value, 0), over a variable behind tanh.

    Distances are those of inputs scaled to [0, 1]. `value` is what the problem climbs.

    Attributes:
        steps: of Adam; each costs one forward and one backward pass.
        confidence: what `value` must reach.
        lr: learning rate; `None` takes one whose first step is as long as the way to expect.
        published: the schedule of the paper's code: a constant rate, and tanh as wide as the box.
    """

    steps: int
    confidence: float = 0.0
    lr: float | None = None
    published: bool = False

    def descend(self, problem: Problem, start: Tensor, penalty: PenaltyState) -> Nearest:
        """Return the nearest successes of the descent from `start` `(n, *features)`."""
        lower, upper = problem.model.bounds
        w = (((at_least_float32(start) - lower) / (upper - lower) * 2 - 1) / self._range).atanh_()
        never = torch.full_like(penalty.const, math.inf)
        return iterate(
            problem,
            start,
            AdamState(
                w=w,
                exp_avg=torch.zeros_like(w),
                exp_avg_sq=torch.zeros_like(w),
                const=penalty.const,
                rate=self._rate(problem, penalty),
                least=never,
                before=never,
                closed=torch.zeros_like(never, dtype=torch.bool),
            ),
            self._step,
            steps=self.steps,
            best=Nearest.empty(problem.x),
            finished=lambda _, adam: adam.closed,
        )

    def _rate(self, problem: Problem, penalty: PenaltyState) -> Tensor:
        """Return learning rates `(n,)`: a step moves a feature by its share of the distance."""
        if self.lr is not None or self.published:
            return torch.full_like(penalty.expected_distance, self.lr or PUBLISHED_LR)
        return 2 * penalty.expected_distance / math.sqrt(problem.x[0].numel())

    @property
    def _range(self) -> float:
        """How far from the middle tanh reaches, in half widths of the box."""
        return _PUBLISHED_STRETCH if self.published else _STRETCH

    def _step(
        self, i: int, problem: Problem, at: Iterate, adam: AdamState
    ) -> tuple[Tensor, AdamState]:
        lower, upper = problem.model.bounds
        width, middle = upper - lower, (lower + upper) / 2
        gradient, objective, stuck = self._objective(problem, at, adam)
        self._move(i, gradient, adam)
        x_adv = problem.clip(adam.w.tanh().mul_(width / 2 * self._range).add_(middle))
        return x_adv, self._watched(i, adam, objective, stuck)

    def _objective(
        self, problem: Problem, at: Iterate, adam: AdamState
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradient of the objective by `w`, the objective, and which are stuck."""
        lower, upper = problem.model.bounds
        width = upper - lower
        grad = at_least_float32(problem.ascent_direction(at))
        delta = at_least_float32(at.x_adv - problem.x).div_(width)
        missing = (self.confidence - at.value.detach()).clamp_min(0).to(grad.dtype)
        stuck = (missing > 0) & (lp_norm(grad, "linf") == 0)
        objective = lp_norm(delta, "l2").square() + adam.const * missing
        weight = torch.where(missing > 0, adam.const * width, 0)
        slope = delta.mul_(2).addcmul_(per_sample(weight, grad), grad, value=-1)
        # by the chain rule through tanh
        slope.addcmul_(slope, adam.w.tanh().square_(), value=-1).mul_(self._range / 2)
        return slope, objective, stuck

    def _move(self, i: int, gradient: Tensor, adam: AdamState) -> None:
        """Take step `i`, in place: the state is the loop's own. `gradient` is used up."""
        adam.exp_avg.lerp_(gradient, 1 - BETA1)
        adam.exp_avg_sq.lerp_(gradient.square_(), 1 - BETA2)
        scale = (adam.exp_avg_sq / (1 - BETA2 ** (i + 1))).sqrt_().add_(EPS)
        rate = adam.rate / (1 - BETA1 ** (i + 1))
        if not self.published:
            rate = rate * ((1 + math.cos(math.pi * i / self.steps)) / 2)
        wall = math.atanh(1 / self._range)
        move = torch.div(adam.exp_avg, scale, out=scale).mul_(per_sample(rate, scale))
        adam.w.sub_(move).clamp_(-wall, wall)

    def _watched(self, i: int, adam: AdamState, objective: Tensor, stuck: Tensor) -> AdamState:
        """Return the state with those samples closed that are `stuck` or no longer improve."""
        least, before = torch.minimum(adam.least, objective), adam.before
        if i and i % max(1, self.steps // 10) == 0:
            stuck, before = stuck | (least > _SAME * before), least
        return adam._replace(least=least, before=before, closed=stuck)
