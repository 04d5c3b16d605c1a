"""Steepest ascent within a ball: the one search of FGSM, FGM, BIM and PGD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.loop import Keep, Stop, iterate
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Best
from advkit.attacks.engine.rounding import warn_of_lost_budget, warn_of_lost_steps
from advkit.attacks.engine.rows import select, update_rows
from advkit.core.norms import normalize, steepest
from advkit.core.randomness import uniform_noise


class AscentState(NamedTuple):
    """What each sample carries from step to step."""

    eps: Tensor  # (n,)
    lengths: Tensor  # (n, steps)
    velocity: Tensor  # (n, *features), or (n, 1, ...) as long as it is zero


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """One way to climb: `steps` steps of steepest ascent, projected onto ball and box.

    Attributes:
        eps: radius for each sample, `(n,)`.
        lengths: of the steps, in input units, `(n, steps)`.
        momentum: weight of the previous direction.
        random_start: whether to begin at a random point of the ball.
        restarts: independent runs.
        seed: of the random starts.
        keep: which iterate is kept.
        stop: whether successful samples are finished.
    """

    eps: Tensor
    lengths: Tensor
    momentum: float = 0.0
    random_start: bool = False
    restarts: int = 1
    seed: int = 0
    keep: Keep = "strongest"
    stop: Stop

    def search(self, problem: Problem) -> Best:
        """Return the best iterates over all restarts; each takes up what is still unsolved."""
        warn_of_lost_budget(problem, self.eps)
        warn_of_lost_steps(problem, self.lengths.amax(1), self.eps)
        best = Best.unevaluated(problem.x)
        # a random start would move inputs that need no attack: those are left out before
        look_before = self.stop == "first" and self.random_start
        if look_before:
            problem.evaluate_clean(best)
        for restart in range(self.restarts):
            remaining = self.remaining(best)
            if not remaining.any():
                break
            part = problem.select(remaining)
            start = part.x
            if self.random_start:
                eps, bounds = self.eps[part.rows], part.model.bounds
                noisy = uniform_noise(part.x, eps, part.norm, bounds, self.seed, restart)
                start = part.round_into_ball(part.clip(noisy), eps)
            found = self._climb(part, start, first=restart == 0 and not look_before)
            better = (found.violation < best.violation[remaining]) | (self.keep == "last")
            update_rows(best, part.rows[better], select(found, better))
        return best

    def search_from(self, problem: Problem, start: Tensor) -> Best:
        """Return the best iterates from the points of the balls that are nearest to `start`."""
        eps = self.eps[problem.rows]
        return self._climb(problem, problem.project_to_ball(start.clone(), eps))

    def remaining(self, best: Best) -> Tensor:
        """Mask of the samples of the whole batch that are still to be attacked."""
        return ~best.success if self.stop == "first" else torch.ones_like(best.success)

    def _climb(self, problem: Problem, start: Tensor, *, first: bool = False) -> Best:
        x, rows = problem.x, problem.rows
        at_rest = x.new_zeros(len(x), *[1] * (x.ndim - 1))
        return iterate(
            problem,
            start,
            AscentState(self.eps[rows], self.lengths[rows], at_rest),
            self._step,
            steps=self.lengths.shape[1],
            best=Best.unevaluated(x),
            finished=_succeeded if self.stop == "first" else None,
            formula=Best.unevaluated if self.keep == "last" else None,
            first=first,
        )

    def _step(
        self, i: int, problem: Problem, at: Iterate, state: AscentState
    ) -> tuple[Tensor, AscentState]:
        x_adv, grad = at.x_adv, problem.ascent_direction(at)
        if self.momentum:
            velocity = self.momentum * state.velocity + normalize(grad, "l1")
            state, grad = state._replace(velocity=velocity), velocity
        move = steepest(grad, state.lengths[:, i], problem.norm, x_adv, problem.model.bounds)
        return problem.project_to_ball(move.add_(x_adv), state.eps), state


def step_schedule(eps: Tensor, steps: int, step_size: float | None = None) -> Tensor:
    """Return the lengths `(n, steps)` of the steps in balls of radius `eps` `(n,)`.

    They are `step_size` each. Without it they shrink linearly from `eps` to `eps / steps`.
    """
    if step_size is not None:
        most = torch.finfo(eps.dtype).max
        return constant_steps(torch.full_like(eps, min(step_size, most)), steps)
    decay = torch.arange(steps, 0, -1, device=eps.device, dtype=eps.dtype) / steps
    return eps[:, None] * decay


def constant_steps(length: Tensor, steps: int) -> Tensor:
    """Return the lengths `(n, steps)` of steps that are all of `length` `(n,)`, and finite."""
    return length.clamp_max(torch.finfo(length.dtype).max)[:, None].expand(-1, steps)


def _succeeded(at: Iterate, _: AscentState) -> Tensor:
    return at.success
