"""Steepest ascent within a ball, the search of FGSM, FGM, BIM and PGD."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.loop import Keep, Stop, iterate, succeeded
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Best
from advkit.attacks.engine.rounding import warn_of_lost_budget, warn_of_lost_steps
from advkit.attacks.engine.runs import strongest_of_runs
from advkit.core.norms import Norm, normalize, steepest
from advkit.core.randomness import uniform_noise
from advkit.core.tensors import finite_multiple

# Of a wide start, measured on the robust nets of docs/results.md. Radii are multiples of eps.
START_RADIUS: dict[Norm, float] = {"l2": 8.0, "l1": 24.0}  # of the random point
FIRST_RADIUS = 4.0  # of the first ball
WIDE_SHARE = 0.3  # of the steps, in balls of more than eps
MAX_WIDE_STEPS = 8


class AscentState(NamedTuple):
    """State of each sample between steps."""

    eps: Tensor  # (n,)
    step_sizes: Tensor  # (n, steps)
    velocity: Tensor  # (n, *features), or (n, 1, ...) as long as it is zero


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """Steepest ascent, each step of which is projected onto the ball and clipped to the bounds.

    Attributes:
        eps: radius for each sample, `(n,)`.
        step_sizes: step sizes in input units, `(n, steps)`.
        momentum: weight of the previous direction.
        random_start: whether to begin at a random point of the ball.
        restarts: number of independent runs.
        seed: seed of the random starts.
        start_radius: radius of the ball of the random start, in multiples of `eps`.
        wide_radii: radii of the balls of the first iterates, in multiples of `eps`. The steps there
            are longer by the same factor, and none of these iterates is kept.
        keep: the iterate to keep: `"strongest"` or `"last"`.
        stop: `"first"` if a successful sample is finished, else `"never"`.
    """

    eps: Tensor
    step_sizes: Tensor
    momentum: float = 0.0
    random_start: bool = False
    restarts: int = 1
    seed: int = 0
    start_radius: float = 1.0
    wide_radii: tuple[float, ...] = ()
    keep: Keep = "strongest"
    stop: Stop

    def search(self, problem: Problem) -> Best:
        """Return the best iterates over all restarts; each attacks the remaining samples."""
        warn_of_lost_budget(problem, self.eps)
        warn_of_lost_steps(problem, self.step_sizes.amax(1), self.eps)
        best = Best.unevaluated(problem.x)
        # exclude inputs that are successes already, since a random start would move them
        clean_first = self.stop == "first" and self.random_start
        if clean_first:
            problem.evaluate_clean(best)

        def run(restart: int, part: Problem) -> Best:
            start = self._random_start(part, restart) if self.random_start else part.x
            return self._ascend(part, start, first=restart == 0 and not clean_first)

        return strongest_of_runs(problem, best, self.restarts, run, self.stop)

    def search_from(self, problem: Problem, start: Tensor) -> Best:
        """Return the best iterates of an ascent from `start`, projected onto the balls."""
        eps = self.eps[problem.rows]
        return self._ascend(problem, problem.project_to_ball(start.clone(), eps))

    def _random_start(self, problem: Problem, restart: int) -> Tensor:
        """Return random points around the inputs, within the bounds."""
        eps, bounds = self.eps[problem.rows], problem.model.bounds
        radius = finite_multiple(eps, self.start_radius)
        noisy = uniform_noise(problem.x, radius, problem.norm, bounds, self.seed, restart)
        return problem.round_into_ball(problem.clip(noisy), eps)

    def _ascend(self, problem: Problem, start: Tensor, *, first: bool = False) -> Best:
        x, rows = problem.x, problem.rows
        at_rest = x.new_zeros(len(x), *[1] * (x.ndim - 1))
        state = AscentState(self.eps[rows], self.step_sizes[rows], at_rest)
        if self.wide_radii:
            start, state = self._start_wide(problem, start, state, first=first)
        return iterate(
            problem,
            start,
            state,
            self._step,
            steps=state.step_sizes.shape[1],
            best=Best.unevaluated(x),
            finished=succeeded if self.stop == "first" else None,
            formula=Best.unevaluated if self.keep == "last" else None,
            first=first and not self.wide_radii,
        )

    def _start_wide(
        self, problem: Problem, x_adv: Tensor, state: AscentState, *, first: bool
    ) -> tuple[Tensor, AscentState]:
        """Take the steps in the wide balls; return the first iterates in the balls of `eps`."""
        eps, step_sizes, wide = state.eps, state.step_sizes, problem.unrecorded()
        for i, (radius, following) in enumerate(itertools.pairwise((*self.wide_radii, 1.0))):
            at = wide.forward(x_adv, differentiate=True, first=first and i == 0)
            state = state._replace(
                eps=finite_multiple(eps, following), step_sizes=finite_multiple(step_sizes, radius)
            )
            x_adv, state = self._step(i, wide, at, state)
            problem.statistics.advance(1)
        return x_adv, state._replace(eps=eps, step_sizes=step_sizes[:, len(self.wide_radii) :])

    def _step(
        self, i: int, problem: Problem, at: Iterate, state: AscentState
    ) -> tuple[Tensor, AscentState]:
        x_adv, grad = at.x_adv, problem.ascent_direction(at)
        if self.momentum:
            velocity = self.momentum * state.velocity + normalize(grad, "l1")
            state, grad = state._replace(velocity=velocity), velocity
        move = steepest(grad, state.step_sizes[:, i], problem.norm, x_adv, problem.model.bounds)
        return problem.project_to_ball(move.add_(x_adv), state.eps), state


def step_schedule(eps: Tensor, steps: int, step_size: float | None = None) -> Tensor:
    """Return the step sizes `(n, steps)` in balls of radius `eps` `(n,)`.

    Each is `step_size`. Without it, they decay linearly from `eps` to `eps / steps`.
    """
    if step_size is not None:
        largest = torch.finfo(eps.dtype).max
        return constant_steps(torch.full_like(eps, min(step_size, largest)), steps)
    decay = torch.arange(steps, 0, -1, device=eps.device, dtype=eps.dtype) / steps
    return eps[:, None] * decay


def wide_start(norm: Norm, steps: int) -> tuple[float, tuple[float, ...]]:
    """Return the `start_radius` and the `wide_radii` of an ascent of `steps` steps.

    The radii fall linearly. In linf, where no wide start helped, and with fewer than four steps
    there are none.
    """
    wide = min(int(WIDE_SHARE * steps), MAX_WIDE_STEPS)
    if norm == "linf" or not wide:
        return 1.0, ()
    radii = tuple(FIRST_RADIUS - (FIRST_RADIUS - 1) * i / wide for i in range(wide))
    return START_RADIUS[norm], radii


def constant_steps(step_size: Tensor, steps: int) -> Tensor:
    """Return constant, finite step sizes `(n, steps)` from one `step_size` `(n,)` per sample."""
    return step_size.clamp_max(torch.finfo(step_size.dtype).max)[:, None].expand(-1, steps)
