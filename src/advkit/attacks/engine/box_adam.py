"""Adam over a box, the optimizer of Carlini and Wagner's attacks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.constant_search import PenaltyState
from advkit.attacks.engine.loop import iterate
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Nearest
from advkit.core.norms import lp_norm, per_sample
from advkit.core.tensors import at_least_float32

BETA1 = 0.9  # Kingma and Ba (2015, arXiv:1412.6980), like the next two
BETA2 = 0.999
EPS = 1e-8


@dataclass(frozen=True)
class Tuning:
    """Constants of the descent. Those named `published` are from the code of the paper."""

    tanh_range: float = 1.2  # range of tanh in widths of the box; tuned on docs/performance.md
    published_tanh_range: float = 1 + 1e-6
    published_lr: float = 0.01
    min_ratio: float = 0.9999  # published; of the objective to that of a tenth of the steps ago


TUNING = Tuning()


class AdamState(NamedTuple):
    """State of each sample from step to step."""

    w: Tensor  # (n, *features), the variable: x_adv is tanh(w) half widths from the middle
    exp_avg: Tensor  # (n, *features), running mean of the gradients
    exp_avg_sq: Tensor  # (n, *features), running mean of their squares
    const: Tensor  # (n,), weight of the loss in the objective
    lr: Tensor  # (n,), learning rate at the first step
    min_objective: Tensor  # (n,), smallest objective so far
    reference: Tensor  # (n,), the smallest objective a tenth of the steps ago
    finished: Tensor  # bool (n,), no longer improves


@dataclass(frozen=True, kw_only=True)
class BoxAdam:
    """Adam on |x_adv - x|^2 + const * max(confidence - value, 0), with x_adv a function of tanh.

    Distances are those of inputs scaled to [0, 1]. `value` is the objective of the problem.

    Attributes:
        steps: steps of Adam; each costs one forward and one backward pass.
        confidence: value that `value` must reach.
        lr: learning rate; `None` takes one whose first step is as long as the expected distance.
        published: use the schedule of the paper's code: a constant learning rate, and a tanh as
            wide as the box.
    """

    steps: int
    confidence: float = 0.0
    lr: float | None = None
    published: bool = False

    def descend(self, problem: Problem, start: Tensor, penalty: PenaltyState) -> Nearest:
        """Return the nearest successes of the descent from `start` `(n, *features)`."""
        lower, upper = problem.model.bounds
        w = (((at_least_float32(start) - lower) / (upper - lower) * 2 - 1) / self._range).atanh_()
        infinite = torch.full_like(penalty.const, math.inf)
        return iterate(
            problem,
            start,
            AdamState(
                w=w,
                exp_avg=torch.zeros_like(w),
                exp_avg_sq=torch.zeros_like(w),
                const=penalty.const,
                lr=self._initial_lr(problem, penalty),
                min_objective=infinite,
                reference=infinite,
                finished=torch.zeros_like(infinite, dtype=torch.bool),
            ),
            self._step,
            steps=self.steps,
            best=Nearest.empty(problem.x),
            finished=lambda _, adam: adam.finished,
        )

    def _initial_lr(self, problem: Problem, penalty: PenaltyState) -> Tensor:
        """Return the learning rates `(n,)`: one step over all features is the expected distance."""
        if self.lr is not None or self.published:
            return torch.full_like(penalty.expected_distance, self.lr or TUNING.published_lr)
        return 2 * penalty.expected_distance / math.sqrt(problem.x[0].numel())

    @property
    def _range(self) -> float:
        """Range of tanh, in widths of the box."""
        return TUNING.published_tanh_range if self.published else TUNING.tanh_range

    def _step(
        self, i: int, problem: Problem, at: Iterate, adam: AdamState
    ) -> tuple[Tensor, AdamState]:
        lower, upper = problem.model.bounds
        width, middle = upper - lower, (lower + upper) / 2
        gradient, objective, no_gradient = self._objective(problem, at, adam)
        self._adam_step(i, gradient, adam)
        x_adv = problem.clip(adam.w.tanh().mul_(width / 2 * self._range).add_(middle))
        return x_adv, self._update_progress(i, adam, objective, no_gradient)

    def _objective(
        self, problem: Problem, at: Iterate, adam: AdamState
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate the objective.

        Returns:
            Its gradient with respect to `w` `(n, *features)`, its value `(n,)`, and a mask `(n,)`
            of the samples whose loss has no gradient although they are not successes.
        """
        lower, upper = problem.model.bounds
        width = upper - lower
        grad = at_least_float32(problem.ascent_direction(at))
        delta = at_least_float32(at.x_adv - problem.x).div_(width)
        hinge = (self.confidence - at.value.detach()).clamp_min(0).to(grad.dtype)
        no_gradient = (hinge > 0) & (lp_norm(grad, "linf") == 0)
        objective = lp_norm(delta, "l2").square() + adam.const * hinge
        weight = torch.where(hinge > 0, adam.const * width, 0)
        slope = delta.mul_(2).addcmul_(per_sample(weight, grad), grad, value=-1)
        # by the chain rule through tanh
        slope.addcmul_(slope, adam.w.tanh().square_(), value=-1).mul_(self._range / 2)
        return slope, objective, no_gradient

    def _adam_step(self, i: int, gradient: Tensor, adam: AdamState) -> None:
        """Take step `i` in place; `gradient` is overwritten. The state is not shared."""
        adam.exp_avg.lerp_(gradient, 1 - BETA1)
        adam.exp_avg_sq.lerp_(gradient.square_(), 1 - BETA2)
        scale = (adam.exp_avg_sq / (1 - BETA2 ** (i + 1))).sqrt_().add_(EPS)
        lr = adam.lr / (1 - BETA1 ** (i + 1))
        if not self.published:
            lr = lr * ((1 + math.cos(math.pi * i / self.steps)) / 2)
        bound = math.atanh(1 / self._range)
        move = torch.div(adam.exp_avg, scale, out=scale).mul_(per_sample(lr, scale))
        adam.w.sub_(move).clamp_(-bound, bound)

    def _update_progress(
        self, i: int, adam: AdamState, objective: Tensor, no_gradient: Tensor
    ) -> AdamState:
        """Return the state after step `i`; samples without progress or gradient are finished."""
        finished, reference = no_gradient, adam.reference
        min_objective = torch.minimum(adam.min_objective, objective)
        if i and i % max(1, self.steps // 10) == 0:
            finished = finished | (min_objective > TUNING.min_ratio * reference)
            reference = min_objective
        return adam._replace(min_objective=min_objective, reference=reference, finished=finished)
