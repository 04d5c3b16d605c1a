"""Base class of C&W and L-BFGS: distance plus a constant times a loss, and its constants."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.minimum_norm import MinimumNormAttack, candidates, refine_to_boundary
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Nearest
from advkit.attacks.engine.rows import choose, select, update_rows
from advkit.core import checks
from advkit.core.norms import lp_norm
from advkit.core.tensors import at_least_float32


@dataclass(frozen=True)
class Tuning:
    """Constants of the search, measured on the nets of docs/performance.md."""

    warm_distance: float = 0.2  # expected from the nearest success, relative to that from the input
    widening: float = 2.0  # factor of the expected distance without a success so far
    same_ratio: float = 0.9  # two constants of a greater ratio count as equal
    max_const: float = 1e30  # keeps products with a constant finite
    growth: float = 10.0  # factor of a constant without a success
    min_gain: float = 1e-3  # share by which a search step must shorten the distance
    start_fraction: float = 0.98  # of the way to the nearest success, start of a later search step
    refine_steps: int = 3  # forward passes that move a success to the boundary


TUNING = Tuning()


class PenaltyState(NamedTuple):
    """Constant of each sample, and the distance that it is expected to lead to."""

    const: Tensor  # (n,), weight of the loss against the squared distance
    min_const: Tensor  # (n,), below it the input itself has a smaller objective than any success
    expected_distance: Tensor  # (n,), in widths of the box, like all distances here


class Bracket(NamedTuple):
    """Constants, and an interval with the smallest one that succeeds; of any shape `(n, ...)`."""

    const: Tensor
    low: Tensor  # the largest constant that failed, 0 without one
    high: Tensor  # the smallest constant that succeeded, inf without one

    def narrowed(self, succeeded: Tensor, failed: Tensor) -> Bracket:
        """Return the bracket after constants have `succeeded` or `failed`, masks of its shape."""
        low = torch.where(failed, self.const, self.low)
        return self._replace(low=low, high=torch.where(succeeded, self.const, self.high))

    def next(self) -> Tensor:
        """Return the next constants: the middle of the interval, or larger without a success."""
        larger = (TUNING.growth * self.const).clamp_max(TUNING.max_const)
        return torch.where(self.high.isinf(), larger, (self.low + self.high) / 2)


def warm_start(problem: Problem, nearest: Nearest) -> Tensor:
    """Return points just inside the nearest successes, and the inputs of samples without one.

    A search that begins inside attributes a success to the constant that was tried.
    """
    return problem.x.lerp(nearest.x_adv, TUNING.start_fraction)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PenaltyAttack(MinimumNormAttack):
    """Attack that minimizes the squared distance plus a constant times a loss.

    The first search steps aim at the likeliest classes one after another, from the input and with a
    constant that follows from the gradient there. The later ones begin at the nearest success, with
    smaller constants, or with larger ones if there is no success. A sample that a search step does
    not bring nearer leaves the search.
    """

    search_steps: int = 9
    steps: int = 100
    initial_const: float | None = None
    candidates: int = 5
    progress: bool = False

    def __post_init__(self) -> None:
        checks.integer("search_steps", self.search_steps, at_least=1)
        checks.integer("steps", self.steps, at_least=1)
        if self.initial_const is not None:
            checks.positive("initial_const", self.initial_const)
        checks.integer("candidates", self.candidates, at_least=1)
        checks.boolean("progress", self.progress)

    @abstractmethod
    def _descend(self, problem: Problem, start: Tensor, penalty: PenaltyState) -> Nearest:
        """Minimize the objective in `steps` steps from `start`; return the nearest successes."""

    @property
    @abstractmethod
    def _initial_factor(self) -> float:
        """First constant, as a multiple of the smallest one that a linear model needs."""

    def _total_steps(self, problem: Problem) -> int:
        return self.search_steps * self.steps

    def _search_nearest(self, problem: Problem, at: Iterate) -> Nearest:
        classes = candidates(at, problem.goal, min(self.candidates, self.search_steps))
        first, *others = [problem.with_candidate(candidate) for candidate in classes] or [problem]
        penalty = self._linear(first)
        nearest = self._descend_refined(first, first.x, penalty, at.logits)
        for other in others:
            tried = self._linear(other)
            found = self._descend_refined(other, other.x, tried, at.logits)
            penalty = PenaltyState(*choose(found.distance < nearest.distance, tried, penalty))
            nearest = nearest.nearer(found)
        search_steps = self.search_steps - 1 - len(others)
        return self._search_warm(problem, at.logits, nearest, penalty, search_steps)

    def _descend_refined(
        self, problem: Problem, start: Tensor, penalty: PenaltyState, logits: Tensor
    ) -> Nearest:
        """Return the successes of a descent, moved to the boundary; `logits` are of the inputs."""
        found = self._descend(problem, start, penalty)
        return refine_to_boundary(problem, problem.x, logits, found, TUNING.refine_steps)

    def _linear(self, problem: Problem) -> PenaltyState:
        """Return the penalties that a linear model needs; constants of 1 without a gradient."""
        at = problem.forward(problem.x, differentiate=True)
        lower, upper = problem.model.bounds
        slope = (upper - lower) * lp_norm(at_least_float32(problem.ascent_direction(at)), "l2")
        gap = self._confidence - at.value.detach().to(slope.dtype)
        steep = slope > 0
        distance = torch.where(steep, gap / slope, 1).clamp_max(math.sqrt(problem.x[0].numel()))
        min_const = torch.where(steep, distance / slope, 0)
        const = torch.where(steep, self._initial_factor * min_const, 1)
        const = const.clamp_max(TUNING.max_const)
        if self.initial_const is not None:
            const = torch.full_like(const, self.initial_const)
        return PenaltyState(const, min_const, distance)

    def _search_warm(
        self,
        problem: Problem,
        logits: Tensor,
        nearest: Nearest,
        penalty: PenaltyState,
        search_steps: int,
    ) -> Nearest:
        """Continue from the nearest successes, for the samples that still come nearer.

        Args:
            problem: `n` samples.
            logits: of their inputs, `(n, classes)`.
            nearest: their nearest successes so far.
            penalty: the constants that led to them, or that failed.
            search_steps: number of further constants.
        """
        const, infinite = penalty.const, torch.full_like(penalty.const, math.inf)
        reached = nearest.success & (const >= penalty.min_const)
        bracket = Bracket(const, torch.zeros_like(const), torch.where(reached, const, infinite))
        rows = torch.arange(len(const), device=const.device)
        for _ in range(search_steps):
            if not len(rows):
                break
            tried = select(bracket, rows)
            tried = tried._replace(const=tried.next())
            part, before = problem.select(rows), select(nearest, rows)
            state = _warm_penalty(select(penalty, rows), tried.const, before.success)
            found = self._descend_refined(part, warm_start(part, before), state, logits[rows])
            update_rows(nearest, rows, before.nearer(found))
            reached = found.success & (tried.const >= state.min_const)
            tried = tried.narrowed(reached, ~reached)
            update_rows(bracket, rows, tried)
            gained = found.distance < (1 - TUNING.min_gain) * before.distance
            rows = rows[gained | ~reached & (tried.low < TUNING.same_ratio * tried.high)]
        return nearest

    def _search_from_input(self, problem: Problem, penalty: PenaltyState) -> Nearest:
        """Search from the inputs in every search step, first with the constants of `penalty`."""
        nearest = Nearest.empty(problem.x)
        const = penalty.const
        bracket = Bracket(const, torch.zeros_like(const), torch.full_like(const, math.inf))
        for _ in range(self.search_steps):
            found = self._descend(problem, problem.x, penalty._replace(const=bracket.const))
            nearest = nearest.nearer(found)
            bracket = bracket.narrowed(found.success, ~found.success)
            bracket = bracket._replace(const=bracket.next())
        return nearest


def _warm_penalty(penalty: PenaltyState, const: Tensor, success: Tensor) -> PenaltyState:
    """Return `penalty` with new constants, for a start at the nearest success if there is one."""
    factor = torch.where(success, TUNING.warm_distance, TUNING.widening)
    return penalty._replace(const=const, expected_distance=penalty.expected_distance * factor)
