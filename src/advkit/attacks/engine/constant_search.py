"""Distance plus a constant times a loss: the search for the constant of C&W and L-BFGS."""

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

FINER = 0.2  # the distance to expect from the nearest success, as a share of the one from the input
WIDER = 2.0  # and without a success so far, as a multiple of the expected one
CLOSE = 0.9  # constants that are nearer to each other than this count as equal
MAX_CONST = 1e30  # so that products of a constant stay finite
_GROWTH = 10  # of a constant without a success
_GAIN = 1e-3  # share by which a search step must bring a sample nearer
_INSIDE = 0.98  # share of the way to the nearest success where a search step begins
_REFINE_STEPS = 3


class PenaltyState(NamedTuple):
    """What the objective of each sample is measured in."""

    const: Tensor  # (n,), weight of the loss beside the squared distance
    min_const: Tensor  # (n,), below this a success is luck: it costs more than staying at the input
    expected_distance: Tensor  # (n,), in widths of the box, like all distances here


class Bracket(NamedTuple):
    """Constants, and between which others the least that succeeds lies; of any shape `(n, ...)`."""

    const: Tensor
    low: Tensor  # the largest that failed, 0 without one
    high: Tensor  # the least that succeeded, inf without one

    def narrowed(self, succeeded: Tensor, failed: Tensor) -> Bracket:
        """Return the bracket after constants have `succeeded` or `failed`, masks of its shape."""
        low = torch.where(failed, self.const, self.low)
        return self._replace(low=low, high=torch.where(succeeded, self.const, self.high))

    def next(self) -> Tensor:
        """Return the constants to try next: the middle, or larger ones without a success."""
        larger = (_GROWTH * self.const).clamp_max(MAX_CONST)
        return torch.where(self.high.isinf(), larger, (self.low + self.high) / 2)


def warm_start(problem: Problem, nearest: Nearest) -> Tensor:
    """Return points just inside the nearest successes, the inputs where there is none.

    From there a success is due to the constants that led to it.
    """
    return problem.x.lerp(nearest.x_adv, _INSIDE)


@dataclass(frozen=True, kw_only=True, repr=False)
class PenaltyAttack(MinimumNormAttack):
    """Minimizes the squared distance plus a constant times a loss, and searches for the constant.

    The first search steps go for the likeliest classes one after another, from the input and with a
    constant that follows from the gradient there. The later ones go on from the nearest success
    with smaller constants, or larger ones without a success, and leave alone what they bring no
    nearer.
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
        """Return the nearest successes in `steps` steps down the objective from `start`."""

    @property
    @abstractmethod
    def _initial_factor(self) -> float:
        """First constant, as a multiple of the least one that a linear model needs."""

    def _total_steps(self, problem: Problem) -> int:
        return self.search_steps * self.steps

    def _search_nearest(self, problem: Problem, at: Iterate) -> Nearest:
        classes = candidates(at, problem.goal, min(self.candidates, self.search_steps))
        first, *others = [problem.with_candidate(candidate) for candidate in classes] or [problem]
        penalty = self._linear(first)
        nearest = self._descend_refined(first, first.x, penalty, at.logits)
        for towards in others:
            tried = self._linear(towards)
            found = self._descend_refined(towards, towards.x, tried, at.logits)
            penalty = PenaltyState(*choose(found.distance < nearest.distance, tried, penalty))
            nearest = nearest.nearer(found)
        rounds = self.search_steps - 1 - len(others)
        return self._search_warm(problem, at.logits, nearest, penalty, rounds)

    def _descend_refined(
        self, problem: Problem, start: Tensor, penalty: PenaltyState, logits: Tensor
    ) -> Nearest:
        """Return the successes of a descent, moved to the boundary from inputs with `logits`."""
        found = self._descend(problem, start, penalty)
        return refine_to_boundary(problem, problem.x, logits, found, _REFINE_STEPS)

    def _linear(self, problem: Problem) -> PenaltyState:
        """Return what would do if the logits were linear; constants of 1 without a gradient."""
        at = problem.forward(problem.x, differentiate=True)
        lower, upper = problem.model.bounds
        slope = (upper - lower) * lp_norm(at_least_float32(problem.ascent_direction(at)), "l2")
        gap = self._confidence - at.value.detach().to(slope.dtype)
        steep = slope > 0
        distance = torch.where(steep, gap / slope, 1).clamp_max(math.sqrt(problem.x[0].numel()))
        least = torch.where(steep, distance / slope, 0)
        const = torch.where(steep, self._initial_factor * least, 1).clamp_max(MAX_CONST)
        if self.initial_const is not None:
            const = torch.full_like(const, self.initial_const)
        return PenaltyState(const, least, distance)

    def _search_warm(
        self, problem: Problem, logits: Tensor, nearest: Nearest, penalty: PenaltyState, rounds: int
    ) -> Nearest:
        """Search on from the nearest successes, and leave samples alone that come no nearer.

        Args:
            problem: `n` samples.
            logits: of their inputs, `(n, classes)`.
            nearest: their nearest successes so far.
            penalty: the constants that led there, or failed.
            rounds: how many more to try.
        """
        const, never = penalty.const, torch.full_like(penalty.const, math.inf)
        reached = nearest.success & (const >= penalty.min_const)
        bracket = Bracket(const, torch.zeros_like(const), torch.where(reached, const, never))
        rows = torch.arange(len(const), device=const.device)
        for _ in range(rounds):
            if not len(rows):
                break
            tried = select(bracket, rows)
            tried = tried._replace(const=tried.next())
            part, before, least = (
                problem.select(rows),
                select(nearest, rows),
                penalty.min_const[rows],
            )
            expected = penalty.expected_distance[rows] * torch.where(before.success, FINER, WIDER)
            state = PenaltyState(tried.const, least, expected)
            found = self._descend_refined(part, warm_start(part, before), state, logits[rows])
            update_rows(nearest, rows, before.nearer(found))
            reached = found.success & (tried.const >= least)
            tried = tried.narrowed(reached, ~reached)
            update_rows(bracket, rows, tried)
            gained = found.distance < (1 - _GAIN) * before.distance
            rows = rows[gained | ~reached & (tried.low < CLOSE * tried.high)]
        return nearest

    def _search_from_input(self, problem: Problem, penalty: PenaltyState) -> Nearest:
        """Search in all rounds from the inputs, with the constants of `penalty` first."""
        nearest = Nearest.empty(problem.x)
        const = penalty.const
        bracket = Bracket(const, torch.zeros_like(const), torch.full_like(const, math.inf))
        for _ in range(self.search_steps):
            found = self._descend(problem, problem.x, penalty._replace(const=bracket.const))
            nearest = nearest.nearer(found)
            bracket = bracket.narrowed(found.success, ~found.success)
            bracket = bracket._replace(const=bracket.next())
        return nearest
