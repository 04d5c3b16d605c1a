"""Steps that adapt their length and their sparsity to the progress of each sample, for APGD."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from advkit.attacks.engine.loop import iterate
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Best
from advkit.attacks.engine.rows import choose
from advkit.core.box_projections import project_onto_l1_ball_and_box
from advkit.core.norms import largest_first, normalize, per_sample
from advkit.core.tensors import at_least_float32, finite_multiple


@dataclass(frozen=True)
class Tuning:
    """Constants of the papers: arXiv:2003.01690, section 3, and for l1 arXiv:2103.01208, 3.2."""

    first_step: float = 2.0  # multiple of eps, in linf and l2
    step_weight: float = 0.75  # of a step; the move before it has the rest
    first_period: float = 0.22  # share of the steps up to the first checkpoint
    period_decrease: float = 0.03  # from checkpoint to checkpoint
    min_period: float = 0.06
    min_increases: float = 0.75  # share of the steps of a period that must increase the loss
    first_step_l1: float = 1.0
    min_step_l1: float = 0.1
    step_decrease_l1: float = 1.5
    period_l1: float = 0.04
    sparsity_factor: float = 1.5  # a step changes 1 / 1.5 of as many features as the best iterate
    max_sparsity_ratio: float = 0.95  # of a sparser iterate, with which long steps begin again


TUNING = Tuning()


class Highest(NamedTuple):
    """Iterate of greatest objective of each sample."""

    x_adv: Tensor  # (n, *features)
    value: Tensor  # (n,)

    @staticmethod
    def empty(x: Tensor) -> Highest:
        """Return a record of the inputs `x` with the objective minus infinity."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        return Highest(x.clone(), x.new_full((len(x),), -math.inf, dtype=dtype))

    def improved(self, problem: Problem, at: Iterate) -> Highest:
        """Return the iterates of greater objective."""
        value = at.value.detach().to(self.value.dtype)
        return Highest(*choose(value > self.value, (at.x_adv, value), self))


Kept = TypeVar("Kept", Best, Highest)


class _State(NamedTuple):
    """State of each sample between steps."""

    eps: Tensor  # (n,), radius of the ball
    step_size: Tensor  # (n,)
    before: Tensor  # (n, *features), the point from which the last step was made
    best: Tensor  # (n, *features), the iterate of greatest objective
    best_grad: Tensor  # (n, *features)
    best_value: Tensor  # (n,)
    value: Tensor  # (n,), objective of the last iterate
    increases: Tensor  # (n,), steps since the last checkpoint that increased the objective
    checked_value: Tensor  # (n,), best value at the last checkpoint
    reduced: Tensor  # bool (n,), whether the last checkpoint reduced the step size
    changed: Tensor  # (n,), features that differ from the clean input, at the last checkpoint


@dataclass(frozen=True, kw_only=True)
class Climb:
    """Steps in linf and l2 in balls of radius `eps` `(n,)`."""

    eps: Tensor
    steps: int
    gradient_samples: int

    def ascend(
        self,
        problem: Problem,
        start: Tensor,
        record: Kept,
        finished: Callable[[Iterate, _State], Tensor] | None = None,
    ) -> Kept:
        """Return `record` after all steps from `start`, projected onto the balls and the box."""
        start = self._project(problem, start, self.eps)
        return iterate(
            problem,
            start,
            self._initial_state(problem, start),
            partial(self._step, self._checkpoints()),
            steps=self.steps,
            best=record,
            finished=finished,
        )

    def _initial_state(self, problem: Problem, start: Tensor) -> _State:
        value = torch.full_like(at_least_float32(self.eps), math.inf)
        return _State(
            eps=self.eps,
            step_size=finite_multiple(self.eps, self._first_step),
            before=start,
            best=start,
            best_grad=torch.zeros_like(start),
            best_value=-value,
            value=value,
            increases=torch.zeros_like(value),
            checked_value=-value,
            reduced=torch.ones_like(value, dtype=torch.bool),
            changed=_count_changed(start - problem.x),
        )

    def _step(
        self, checkpoints: dict[int, int], i: int, problem: Problem, at: Iterate, state: _State
    ) -> tuple[Tensor, _State]:
        x_adv, grad = at.x_adv, self._gradient(problem, at)
        state = _observed(state, x_adv, grad, at.value.detach())
        if i in checkpoints:
            restored, state = self._check(problem, checkpoints[i], state)
            x_adv, grad = choose(restored, (state.best, state.best_grad), (x_adv, grad))
        return self._move(i, problem, x_adv, grad, state), state._replace(before=x_adv)

    def _gradient(self, problem: Problem, at: Iterate) -> Tensor:
        """Return the gradient at `at`, the mean of several passes for random models."""
        grad = problem.ascent_direction(at)
        for _ in range(self.gradient_samples - 1):
            again = problem.forward(at.x_adv, differentiate=True)
            grad = grad + problem.ascent_direction(again)
        return grad

    @property
    def _first_step(self) -> float:
        return TUNING.first_step

    def _checkpoints(self) -> dict[int, int]:
        """Return the steps before which the progress is checked, with the length of the period."""
        period, shortest, decrease = (
            max(int(share * self.steps), 1)
            for share in (TUNING.first_period, TUNING.min_period, TUNING.period_decrease)
        )
        checkpoints, at = {}, period
        while at < self.steps:
            checkpoints[at] = period
            period = max(period - decrease, shortest)
            at += period
        return checkpoints

    def _check(self, problem: Problem, period: int, state: _State) -> tuple[Tensor, _State]:
        """Return which samples go back to their best iterate, and the state after a checkpoint."""
        few = state.increases <= TUNING.min_increases * period
        stuck = ~state.reduced & (state.best_value <= state.checked_value)
        reduced = few | stuck
        return reduced, state._replace(
            step_size=torch.where(reduced, state.step_size / 2, state.step_size),
            increases=torch.zeros_like(state.increases),
            checked_value=state.best_value,
            reduced=reduced,
        )

    def _move(self, i: int, problem: Problem, x_adv: Tensor, grad: Tensor, state: _State) -> Tensor:
        """Return the next iterates: a step along `grad`, averaged with the move before it."""
        direction = grad.sign() if problem.norm == "linf" else normalize(grad, "l2")
        step = direction * per_sample(state.step_size.to(grad.dtype), grad)
        moved = self._project(problem, x_adv + step, state.eps)
        if i == 0:
            return moved
        weight = TUNING.step_weight
        averaged = x_adv + (moved - x_adv) * weight + (x_adv - state.before) * (1 - weight)
        return self._project(problem, averaged, state.eps)

    def _project(self, problem: Problem, x_adv: Tensor, eps: Tensor) -> Tensor:
        """Return `x_adv` within the balls and the box; `x_adv` may be overwritten."""
        return problem.project_to_ball(x_adv, eps)


class ClimbL1(Climb):
    """Steps in l1, which change few features."""

    @property
    def _first_step(self) -> float:
        return TUNING.first_step_l1

    def _checkpoints(self) -> dict[int, int]:
        period = max(int(TUNING.period_l1 * self.steps), 1)
        return dict.fromkeys(range(period, self.steps, period), period)

    def _check(self, problem: Problem, period: int, state: _State) -> tuple[Tensor, _State]:
        changed = _count_changed(state.best - problem.x)
        sparser = changed < TUNING.max_sparsity_ratio * state.changed
        longest = TUNING.first_step_l1 * state.eps
        shorter = torch.maximum(
            state.step_size / TUNING.step_decrease_l1, TUNING.min_step_l1 * longest
        )
        step_size = torch.where(sparser, longest, shorter)
        return sparser, state._replace(step_size=step_size, changed=changed)

    def _move(self, i: int, problem: Problem, x_adv: Tensor, grad: Tensor, state: _State) -> Tensor:
        """Return the next iterates: all features of largest gradient change by the same amount."""
        size = grad.abs().flatten(1)
        count = (state.changed / TUNING.sparsity_factor).ceil().long().clamp(1, size.shape[1])
        largest, _ = largest_first(size, lambda top, _: count <= top.shape[1])
        smallest = largest.gather(1, count[:, None] - 1)
        sign = torch.where(size >= smallest, grad.flatten(1).sign(), 0)
        length = state.step_size.to(grad.dtype) / sign.abs().sum(1).clamp_min(1)
        return self._project(problem, x_adv + (sign * length[:, None]).view_as(grad), state.eps)

    def _project(self, problem: Problem, x_adv: Tensor, eps: Tensor) -> Tensor:
        delta = at_least_float32(x_adv) - problem.x
        delta = project_onto_l1_ball_and_box(delta, problem.x, eps, problem.model.bounds)
        return problem.clip(problem.x + delta)


def _observed(state: _State, x_adv: Tensor, grad: Tensor, value: Tensor) -> _State:
    """Return the state after iterates with the gradients `grad` and the objective `value`."""
    value = value.to(state.value.dtype)
    new, old = (x_adv, grad, value), (state.best, state.best_grad, state.best_value)
    best, best_grad, best_value = choose(value > state.best_value, new, old)
    return state._replace(
        best=best,
        best_grad=best_grad,
        best_value=best_value,
        value=value,
        increases=state.increases + (value > state.value),
    )


def _count_changed(delta: Tensor) -> Tensor:
    """Return the number of nonzero features of `delta`, `(n,)`."""
    return delta.count_nonzero(dim=tuple(range(1, delta.ndim))).float()
