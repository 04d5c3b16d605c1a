"""Steepest ascent within a ball: the one loop behind FGSM, FGM, BIM and PGD."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.loop import Keep, Stop, iterate
from advkit.attacks.engine.problem import Judged, Problem
from advkit.attacks.engine.records import Best, nothing_yet, unjudged
from advkit.core.norms import Norm, normalize, project, steepest
from advkit.core.randomness import sample_keys, uniform_in_ball


class _Pace(NamedTuple):
    """What each sample carries from step to step."""

    eps: Tensor  # (n,)
    lengths: Tensor  # (n, steps)
    velocity: Tensor  # (n, *features), or (n, 1, ...) as long as it is zero


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """One way to climb: `steps` steps of steepest ascent, projected onto ball and box.

    Attributes:
        norm: of the ball and of the steps.
        eps: radius for each sample, `(n,)`.
        lengths: of the steps, in input units, `(n, steps)`.
        momentum: weight of the previous direction.
        random_start: whether to begin at a random point of the ball.
        restarts: independent runs.
        seed: of the random starts.
        keep: which iterate is kept.
        stop: whether successful samples are finished.
    """

    norm: Norm
    eps: Tensor
    lengths: Tensor
    momentum: float = 0.0
    random_start: bool = False
    restarts: int = 1
    seed: int = 0
    keep: Keep = "strongest"
    stop: Stop

    def search(self, problem: Problem, advance: Callable[[int], None] = lambda _: None) -> Best:
        """The best iterates over all restarts; each restart takes up what is still unsolved."""
        best = nothing_yet(problem)
        if self._looks_before:
            best = self._leave_out_misclassified(problem, best)
        for restart in range(self.restarts):
            unsolved = ~best.success if self.stop == "first" else torch.ones_like(best.success)
            if not unsolved.any():
                break
            part = problem.take(unsolved)
            found = self._climb(part, restart, advance)
            better = (found.shortfall < best.shortfall[unsolved]) | (self.keep == "last")
            best.put(part.rows[better], found.take(better))
        return best

    @property
    def _looks_before(self) -> bool:
        """A random start would move inputs that need no attack: those are looked for before."""
        return self.stop == "first" and self.random_start

    def _leave_out_misclassified(self, problem: Problem, best: Best) -> Best:
        """Misclassified inputs as they are, for `best`."""
        at = problem.judge(problem.x, differentiate=False, first=True)
        best.put(problem.rows[at.success], Best(at.x_adv, at.shortfall).take(at.success))
        return best

    def _climb(self, problem: Problem, restart: int, advance: Callable[[int], None]) -> Best:
        x, rows = problem.x, problem.rows
        still = x.new_zeros(len(x), *[1] * (x.ndim - 1))
        pace = _Pace(self.eps[rows], self.lengths[rows], still)
        start = x
        if self.random_start:
            keys = sample_keys(x, problem.model.bounds, self.seed, restart)
            start = self._moved(problem, uniform_in_ball(keys, pace.eps, self.norm, x), pace.eps)
        return iterate(
            problem,
            start,
            pace,
            self._step,
            steps=self.lengths.shape[1],
            best=nothing_yet(problem),
            finished=_fooled if self.stop == "first" else None,
            formula=unjudged if self.keep == "last" else None,
            first_look=restart == 0 and not self._looks_before,
            advance=advance,
        )

    def _step(self, i: int, problem: Problem, at: Judged, pace: _Pace) -> tuple[Tensor, _Pace]:
        x_adv, grad = at.x_adv, problem.gradient(at)
        if self.momentum:
            velocity = self.momentum * pace.velocity + normalize(grad, "l1")
            pace, grad = pace._replace(velocity=velocity), velocity
        move = steepest(grad, pace.lengths[:, i], self.norm, x_adv, problem.model.bounds)
        delta = project(move.add_(x_adv).sub_(problem.x), pace.eps, self.norm)
        return self._moved(problem, delta, pace.eps), pace

    def _moved(self, problem: Problem, delta: Tensor, eps: Tensor) -> Tensor:
        """`x + delta` within ball and bounds; `delta` is used up."""
        return problem.inside(problem.clip(delta.add_(problem.x)), eps)


def _fooled(at: Judged, _: _Pace) -> Tensor:
    """`finished` of an attack that stops at the first success."""
    return at.success


def constant(length: Tensor, steps: int) -> Tensor:
    """Steps of the same `length` `(n,)`: `(n, steps)`."""
    return length[:, None].expand(-1, steps)


def shrinking(eps: Tensor, steps: int) -> Tensor:
    """Steps from `eps` `(n,)` down to `eps / steps`, shrinking linearly: `(n, steps)`."""
    share = torch.arange(steps, 0, -1, device=eps.device, dtype=eps.dtype) / steps
    return eps[:, None] * share
