"""Carlini and Wagner's attack in l2."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks._engine import Judged, Nearest, Problem, iterate
from advkit.attacks._minimum import MinimumNormAttack, first_look, polish, rivals
from advkit.core import checks
from advkit.core.batching import progress_bar
from advkit.core.norms import Norm, lp_norm, per_sample

_MEAN, _SQUARE, _TINY = 0.9, 0.999, 1e-8  # Adam's two decays and its epsilon
_STRETCH = 1.2  # how much wider than the box the range of tanh is
_BARELY = 1 + 1e-6  # the same in the published schedule
_AMPLE = 2.0  # the first constant, as a multiple of what a linear model would need
_SAME = 0.9999  # an objective that does not fall below this share of itself no longer improves
_GAIN = 1e-3  # by which share a search step must bring a sample nearer
_POLISH = 3


class _Adam(NamedTuple):
    """What each sample carries from step to step."""

    w: Tensor  # (n, *features), the variable: x_adv lies tanh(w) half widths from the middle
    mean: Tensor  # (n, *features), of the gradients
    square: Tensor  # (n, *features), of their squares
    const: Tensor  # (n,), weight of the logits in the objective
    rate: Tensor  # (n,), learning rate at the first step
    least: Tensor  # (n,), least objective so far
    before: Tensor  # (n,), the same some steps ago
    closed: Tensor  # bool (n,), no longer improves


class _Trial(NamedTuple):
    """The nearest success of each sample, and whether one constant has led to any."""

    nearest: Nearest
    reached: Tensor  # bool (n,)

    def improved(self, problem: Problem, at: Judged) -> _Trial:
        """With another iterate."""
        return _Trial(self.nearest.improved(problem, at), self.reached | at.success)

    def take(self, keep: Tensor) -> _Trial:
        """The same for the samples where bool `keep` `(n,)` is true."""
        return _Trial(self.nearest.take(keep), self.reached[keep])

    def put(self, rows: Tensor, found: _Trial) -> None:
        """Write `found` into the samples `rows`, in place."""
        self.nearest.put(rows, found.nearest)
        self.reached[rows] = found.reached


@dataclass(frozen=True, kw_only=True, repr=False)
class CarliniWagnerL2(MinimumNormAttack):
    """Carlini and Wagner's attack in l2 (2017, arXiv:1608.04644).

    Minimizes |x_adv - x|^2 + const * max(confidence - margin, 0) by Adam, over a variable that
    tanh keeps in the box; a search over the constant finds the smallest that still succeeds. Every
    decision is a sample's own.

    Deviations, all but the last two undone by `published=True`: the first search steps go for the
    likeliest classes one after another, which is the paper's "best case" with the few classes that
    matter, and the later ones go on from the nearest success instead of from the input; the first
    constant follows from the gradient; the rate falls to zero along half a cosine in each search
    step; tanh reaches a fifth over the box and is cut off there, so that features at the bounds
    have a gradient and can move; a sample that a search step brings no nearer is left alone; the
    success is moved towards the input as far as it stays one. The objective is that of inputs
    scaled to [0, 1], so that constants and rates mean the same for all bounds. Successes count with
    the confidence that was asked for: `success` is false below it.

    Args:
        confidence: margin in logits that an adversarial input must have, not negative.
        search_steps: values of the constant that are tried.
        steps: steps of Adam for each; each costs one forward and one backward pass.
        lr: learning rate of Adam; the paper's is 0.01.
        initial_const: the first constant; `None` takes twice what a linear model would need, and
            0.001 in the published schedule.
        candidates: how many classes to go for, the likeliest first. Without meaning for a targeted
            attack and in the published schedule.
        published: the schedule of the paper's code, for comparison; give it its time too, with
            `steps=10_000, lr=0.01`.
        progress: show a bar (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.

    Example:
        >>> import torch
        >>> from advkit import attacks
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> attack = attacks.CarliniWagnerL2(search_steps=3, steps=30)
        >>> bool(attack.run(net, torch.rand(5, 1, 8, 8)).success.all())
        True
    """

    confidence: float = 0.0
    search_steps: int = 9
    steps: int = 100
    lr: float | None = None
    initial_const: float | None = None
    candidates: int = 5
    published: bool = False
    progress: bool = False
    norm: Norm = field(default="l2", init=False)

    def __post_init__(self) -> None:
        checks.not_negative("confidence", self.confidence)
        checks.whole("search_steps", self.search_steps, at_least=1)
        checks.whole("steps", self.steps, at_least=1)
        if self.lr is not None:
            checks.positive("lr", self.lr)
        if self.initial_const is not None:
            checks.positive("initial_const", self.initial_const)
        checks.whole("candidates", self.candidates, at_least=1)
        checks.flag("published", self.published)
        checks.flag("progress", self.progress)

    @property
    def _confidence(self) -> float:
        return self.confidence

    def _approach(self, problem: Problem) -> Nearest:
        nearest, at = first_look(problem)
        rows = (~nearest.success).nonzero().flatten()
        if len(rows):
            part, found, at = problem.take(rows), nearest.take(rows), at.take(rows)
            bar = progress_bar("C&W", self.search_steps * self.steps, self.progress)
            with bar as advance:
                if self.published:
                    const = torch.full_like(found.distance, self.initial_const or 1e-3)
                    rate = torch.full_like(const, self.lr or 0.01)
                    found = self._search_const(part, found, const, rate, self.search_steps, advance)
                else:
                    found = self._class_by_class(part, at, found, advance)
            nearest.put(rows, found)
        return nearest

    def _class_by_class(
        self, problem: Problem, at: Judged, nearest: Nearest, advance: Callable[[int], None]
    ) -> Nearest:
        """One search step for each of the likeliest classes, the others for the nearest success."""
        classes: list[Tensor | None] = [
            *rivals(at, problem, min(self.candidates, self.search_steps))
        ]
        best = rates = torch.zeros_like(nearest.distance)
        for rival in classes or [None]:
            towards = problem.against(rival)
            (const, rate), before = self._linear(towards), nearest.distance.clone()
            nearest = self._descend(towards, problem.x, const, rate, nearest, advance).nearest
            rates = torch.where(nearest.distance < before, rate, rates)
            best = torch.where(
                nearest.distance < before, const, torch.maximum(best, const * ~nearest.success)
            )
        left = self.search_steps - max(1, len(classes))
        nearest = self._search_const(problem, nearest, best, REF * rates, left, advance)
        return polish(problem, problem.x, at.shortfall, nearest, _POLISH)

    def _linear(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """A constant and a learning rate, each `(n,)`, that would do if the logits were linear."""
        lower, upper = problem.model.bounds
        at = problem.judge(problem.x, differentiate=True)
        slope = (upper - lower) * lp_norm(problem.gradient(at), "l2").to(problem.x.dtype)
        gap = (self.confidence - at.value.detach()).to(problem.x.dtype)
        const = torch.where(slope > 0, _AMPLE * 2 * gap / slope.square(), 1)
        rate = torch.where(slope > 0, REL * 2 * gap / slope / problem.x[0].numel() ** 0.5, 1)
        if self.initial_const is not None:
            const = torch.full_like(const, self.initial_const)
        if self.lr is not None:
            rate = torch.full_like(rate, self.lr)
        return const, rate

    def _search_const(
        self,
        problem: Problem,
        nearest: Nearest,
        const: Tensor,
        rate: Tensor,
        rounds: int,
        advance: Callable[[int], None],
    ) -> Nearest:
        """Smaller constants `(n,)` while there are successes, larger ones as long as not."""
        low = torch.zeros_like(const)
        high = torch.where(nearest.success, const, math.inf)
        rows = torch.arange(len(const), device=const.device)
        for _ in range(rounds):
            if not self.published or _:
                const = torch.where(high.isinf(), 10 * const, (low + high) / 2)
            part, before = problem.take(rows), nearest.take(rows)
            start = part.x if self.published else before.x_adv
            trial = self._descend(part, start, const[rows], rate[rows], nearest.take(rows), advance)
            high[rows] = torch.where(trial.reached, const[rows], high[rows])
            low[rows] = torch.where(trial.reached, low[rows], const[rows])
            nearest.put(rows, trial.nearest)
            if not self.published:
                gained = trial.nearest.distance < (1 - _GAIN) * before.distance
                rows = rows[gained | ~trial.nearest.success]
                if not len(rows):
                    break
        return nearest

    def _descend(
        self,
        problem: Problem,
        start: Tensor,
        const: Tensor,
        rate: Tensor,
        nearest: Nearest,
        advance: Callable[[int], None],
    ) -> _Trial:
        """`steps` steps from `start`."""
        lower, upper = problem.model.bounds
        wide = start.float() if start.element_size() == 2 else start
        w = (((wide - lower) / (upper - lower) * 2 - 1) / self._reach).atanh()
        never = torch.full_like(const, math.inf)
        zero = torch.zeros_like(w)
        adam = _Adam(w, zero, zero, const, rate, never, never, torch.zeros_like(nearest.success))
        return iterate(
            problem,
            start,
            adam,
            self._step,
            steps=self.steps,
            best=_Trial(nearest, torch.zeros_like(nearest.success)),
            finished=lambda _, adam: adam.closed,
            advance=advance,
        )

    @property
    def _reach(self) -> float:
        """How far from the middle tanh reaches, in half widths of the box."""
        return _BARELY if self.published else _STRETCH

    def _step(self, i: int, problem: Problem, at: Judged, adam: _Adam) -> tuple[Tensor, _Adam]:
        lower, upper = problem.model.bounds
        grad = problem.gradient(at)
        delta = (at.x_adv - problem.x) / (upper - lower)
        missing = (self.confidence - at.value.detach()).clamp_min(0)
        objective = lp_norm(delta, "l2").square() + adam.const * missing
        weight = torch.where(missing > 0, adam.const * (upper - lower), 0)
        slope = 2 * delta - per_sample(weight, grad) * grad
        slope = slope * (1 - adam.w.tanh().square()) * (self._reach / 2)
        mean = slope.lerp(adam.mean, _MEAN)
        square = slope.square_().lerp(adam.square, _SQUARE)
        rate = per_sample(adam.rate, grad)
        if not self.published:
            rate = rate * ((1 + math.cos(math.pi * i / self.steps)) / 2)
        scale = (square / (1 - _SQUARE ** (i + 1))).sqrt_().add_(_TINY)
        wall = math.atanh(1 / self._reach)
        w = (adam.w - rate / (1 - _MEAN ** (i + 1)) * mean / scale).clamp_(-wall, wall)
        x_adv = lower + (upper - lower) * (1 + self._reach * w.tanh()) / 2
        lost = (missing > 0) & (lp_norm(grad, "linf") == 0)
        least, before = torch.minimum(adam.least, objective), adam.before
        if i and i % max(1, self.steps // 10) == 0:
            lost = lost | (least > _SAME * before)
            before = least
        return problem.clip(x_adv), _Adam(
            w, mean, square, adam.const, adam.rate, least, before, lost
        )


REL, REF = 1.0, 1.0
