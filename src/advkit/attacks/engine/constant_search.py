"""Distance plus a constant times a loss: the search over the constant behind C&W and L-BFGS."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.minimum_norm import MinimumNormAttack, first_look, polish, rivals
from advkit.attacks.engine.problem import Judged, Problem
from advkit.attacks.engine.records import Nearest, none_near
from advkit.core import checks
from advkit.core.batching import progress_bar
from advkit.core.norms import lp_norm
from advkit.core.tensors import wide

_FINER = 0.2  # how much shorter the way to the best point is from the nearest success
_WIDER = 2.0  # and how much longer than expected without a success so far
_GAIN = 1e-3  # by which share a search step must bring a sample nearer
_INSIDE = 0.98  # share of the way to the nearest success where a search step begins
_CLOSE = 0.9  # constants that are nearer to each other than this are the same
_GROWTH = 10  # of the constant without a success
_MOST = 1e30  # of a constant, so that its products stay finite
_POLISH = 3


class Weight(NamedTuple):
    """What the objective of each sample is measured in."""

    const: Tensor  # (n,), weight of the loss beside the squared distance
    least: Tensor  # (n,), below this a success is luck: it costs more than staying at the input
    reach: Tensor  # (n,), distance to expect; like all distances here in widths of the box

    def where(self, better: Tensor, other: Weight) -> Weight:
        """This where bool `better` `(n,)` is true, else the `other`."""
        return Weight(*(torch.where(better, *pair) for pair in zip(self, other, strict=True)))


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
        checks.whole("search_steps", self.search_steps, at_least=1)
        checks.whole("steps", self.steps, at_least=1)
        if self.initial_const is not None:
            checks.positive("initial_const", self.initial_const)
        checks.whole("candidates", self.candidates, at_least=1)
        checks.flag("progress", self.progress)

    @abstractmethod
    def _descend(
        self,
        problem: Problem,
        start: Tensor,
        weight: Weight,
        advance: Callable[[int], None],
    ) -> Nearest:
        """The nearest successes in `steps` steps down the objective from `start`."""

    def _approach(self, problem: Problem) -> Nearest:
        nearest, at = first_look(problem)
        rows = (~nearest.success).nonzero().flatten()
        if len(rows):
            bar = progress_bar(type(self).__name__, self.search_steps * self.steps, self.progress)
            with bar as advance:
                found = self._search_all(problem.take(rows), at.take(rows), advance)
            nearest.put(rows, found)
        return nearest

    def _search_all(self, problem: Problem, at: Judged, advance: Callable[[int], None]) -> Nearest:
        """The nearest successes of samples that are none, judged `at` their inputs."""
        nearest = none_near(problem)
        classes = rivals(at, problem, min(self.candidates, self.search_steps))
        towards_each = [problem.against(rival) for rival in classes] or [problem]
        weights: list[Weight] = []
        for towards in towards_each:
            weight = self._linear(towards)
            found = self._descend(towards, problem.x, weight, advance)
            found = polish(problem, problem.x, at.logits, found, _POLISH)
            better = found.distance < nearest.distance
            weights.append(weight.where(better, weights[-1]) if weights else weight)
            nearest = nearest.nearer(found)
        rounds = self.search_steps - len(weights)
        return self._search_const(problem, nearest, weights[-1], rounds, advance, onward=at.logits)

    def _linear(self, problem: Problem) -> Weight:
        """What would do if the logits were linear; 1 without a gradient."""
        at = problem.judge(problem.x, differentiate=True)
        lower, upper = problem.model.bounds
        slope = (upper - lower) * lp_norm(wide(problem.gradient(at)), "l2")
        gap = self._confidence - at.value.detach().to(slope.dtype)
        steep = slope > 0
        reach = torch.where(steep, gap / slope, 1).clamp_max(math.sqrt(problem.x[0].numel()))
        least = torch.where(steep, reach / slope, 0)
        const = torch.where(steep, self._ample * least, 1).clamp_max(_MOST)
        if self.initial_const is not None:
            const = torch.full_like(const, self.initial_const)
        return Weight(const, least, reach)

    @property
    @abstractmethod
    def _ample(self) -> float:
        """A constant that takes a linear model past the boundary, as a multiple of `least`."""

    def _search_const(
        self,
        problem: Problem,
        nearest: Nearest,
        weight: Weight,
        rounds: int,
        advance: Callable[[int], None],
        *,
        onward: Tensor | None,
    ) -> Nearest:
        """Smaller constants where there was a success, larger ones where there was none.

        Args:
            problem: `n` samples.
            nearest: their nearest successes so far.
            weight: the constants that led there, or failed.
            rounds: how many more to try.
            advance: told of each step taken.
            onward: the logits of the inputs `(n, classes)`, to go on from the nearest success,
                polish what is found, and leave samples alone that come no nearer; `None` to begin
                at the input, with the constants as they are, and go through all rounds.
        """
        const, low = weight.const.clone(), torch.zeros_like(weight.const)
        high = torch.where(nearest.success & (const >= weight.least), const, math.inf)
        rows = torch.arange(len(const), device=const.device)
        for k in range(rounds):
            if onward is not None or k:
                larger = (_GROWTH * const).clamp_max(_MOST)
                const = torch.where(high.isinf(), larger, (low + high) / 2)
            part, before = problem.take(rows), nearest.take(rows)
            # from just inside the boundary, so that a success is the doing of this constant
            start = part.x if onward is None else part.x.lerp(before.x_adv, _INSIDE)
            reach = weight.reach[rows]
            if onward is not None:
                reach = reach * torch.where(before.success, _FINER, _WIDER)
            tried = Weight(const[rows], weight.least[rows], reach)
            found = self._descend(part, start, tried, advance)
            if onward is not None:
                found = polish(part, part.x, onward[rows], found, _POLISH)
            nearest.put(rows, before.nearer(found))
            reached = found.success & (tried.const >= tried.least)
            high[rows] = torch.where(reached, tried.const, high[rows])
            low[rows] = torch.where(reached, low[rows], tried.const)
            if onward is not None:
                gained = found.distance < (1 - _GAIN) * before.distance
                rows = rows[gained | ~reached & (low[rows] < _CLOSE * high[rows])]
                if not len(rows):
                    break
        return nearest
