"""Carlini and Wagner's attack in l2."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.constant_search import PenaltyAttack, Weight
from advkit.attacks.engine.loop import iterate
from advkit.attacks.engine.problem import Judged, Problem
from advkit.attacks.engine.records import Nearest, none_near
from advkit.core import checks
from advkit.core.norms import Norm, lp_norm, per_sample
from advkit.core.tensors import wide

_MEAN, _SQUARE, _TINY = 0.9, 0.999, 1e-8  # Adam's two decays and its epsilon
_AMPLE = 2.0  # the first constant, as a multiple of what a linear model would need
_STRETCH = 1.2  # how much wider than the box the range of tanh is
_BARELY = 1 + 1e-6  # the same in the published schedule
_SAME = 0.9999  # an objective that does not fall below this share of itself no longer improves


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


@dataclass(frozen=True, kw_only=True, repr=False)
class CarliniWagnerL2(PenaltyAttack):
    """Carlini and Wagner's attack in l2 (2017, arXiv:1608.04644).

    Minimizes |x_adv - x|^2 + const * max(confidence - margin, 0) by Adam, over a variable that
    tanh keeps in the box; a search over the constant finds the smallest that still succeeds. Every
    decision is a sample's own.

    Deviations, all undone by `published=True`: the first search steps go for the likeliest classes
    one after another, which is the paper's "best case" with the few classes that matter, and the
    later ones go on from the nearest success at a fifth of the rate instead of from the input; the
    first constant and the rate follow from the gradient at the input; the rate falls to zero along
    half a cosine in each search step; tanh reaches a fifth over the box and is cut off there, so
    that features at the bounds have a gradient and can move; a success is moved towards the input
    as far as it stays one; a sample that a search step brings no nearer is left alone.

    In both schedules the objective is that of inputs scaled to [0, 1], so that constants and rates
    mean the same for all bounds, a sample whose objective stands still ends its search step, as in
    the paper's code, and `success` is false below the confidence that was asked for.

    Args:
        confidence: margin in logits that an adversarial input must have, not negative.
        search_steps: values of the constant that are tried.
        steps: steps of Adam for each; each costs one forward and one backward pass.
        lr: learning rate of Adam; `None` takes one whose first step is as long as the way to the
            boundary of a linear model, and 0.01 in the published schedule.
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
    lr: float | None = None
    published: bool = False
    norm: Norm = field(default="l2", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative("confidence", self.confidence)
        if self.lr is not None:
            checks.positive("lr", self.lr)
        checks.flag("published", self.published)

    @property
    def _confidence(self) -> float:
        return self.confidence

    @property
    def _ample(self) -> float:
        return _AMPLE * 2

    def _search_all(self, problem: Problem, at: Judged, advance: Callable[[int], None]) -> Nearest:
        if not self.published:
            return super()._search_all(problem, at, advance)
        nearest = none_near(problem)
        const = torch.full_like(nearest.distance, self.initial_const or 1e-3)
        weight = Weight(const, torch.zeros_like(const), torch.ones_like(const))
        return self._search_const(problem, nearest, weight, self.search_steps, advance, onward=None)

    def _descend(
        self,
        problem: Problem,
        start: Tensor,
        weight: Weight,
        advance: Callable[[int], None],
    ) -> Nearest:
        lower, upper = problem.model.bounds
        w = (((wide(start) - lower) / (upper - lower) * 2 - 1) / self._range).atanh_()
        never = torch.full_like(weight.const, math.inf)
        return iterate(
            problem,
            start,
            _Adam(
                w=w,
                mean=torch.zeros_like(w),
                square=torch.zeros_like(w),
                const=weight.const,
                rate=self._rate(problem, weight),
                least=never,
                before=never,
                closed=torch.zeros_like(never, dtype=torch.bool),
            ),
            self._step,
            steps=self.steps,
            best=none_near(problem),
            finished=lambda _, adam: adam.closed,
            advance=advance,
        )

    def _rate(self, problem: Problem, weight: Weight) -> Tensor:
        """Learning rates `(n,)`: a step moves a feature by its share of the distance."""
        if self.lr is not None or self.published:
            return torch.full_like(weight.reach, self.lr or 0.01)
        return 2 * weight.reach / math.sqrt(problem.x[0].numel())

    @property
    def _range(self) -> float:
        """How far from the middle tanh reaches, in half widths of the box."""
        return _BARELY if self.published else _STRETCH

    def _step(self, i: int, problem: Problem, at: Judged, adam: _Adam) -> tuple[Tensor, _Adam]:
        lower, upper = problem.model.bounds
        width = upper - lower
        grad = wide(problem.gradient(at))
        delta = wide(at.x_adv - problem.x).div_(width)
        missing = (self.confidence - at.value.detach()).clamp_min(0).to(grad.dtype)
        lost = (missing > 0) & (lp_norm(grad, "linf") == 0)
        objective = lp_norm(delta, "l2").square() + adam.const * missing
        weight = torch.where(missing > 0, adam.const * width, 0)
        slope = delta.mul_(2).addcmul_(per_sample(weight, grad), grad, value=-1)
        # by the chain rule through tanh; from here on everything is the loop's own, in place
        slope.addcmul_(slope, adam.w.tanh().square_(), value=-1).mul_(self._range / 2)
        adam.mean.lerp_(slope, 1 - _MEAN)
        adam.square.lerp_(slope.square_(), 1 - _SQUARE)
        scale = (adam.square / (1 - _SQUARE ** (i + 1))).sqrt_().add_(_TINY)
        rate = adam.rate / (1 - _MEAN ** (i + 1))
        if not self.published:
            rate = rate * ((1 + math.cos(math.pi * i / self.steps)) / 2)
        wall = math.atanh(1 / self._range)
        move = torch.div(adam.mean, scale, out=scale).mul_(per_sample(rate, scale))
        adam.w.sub_(move).clamp_(-wall, wall)
        middle = (lower + upper) / 2
        x_adv = problem.clip(adam.w.tanh().mul_(width / 2 * self._range).add_(middle))
        return x_adv, self._watched(i, adam, objective, lost)

    def _watched(self, i: int, adam: _Adam, objective: Tensor, lost: Tensor) -> _Adam:
        """`adam` with what step `i` has shown of its prospects; `lost` samples have no gradient."""
        least, before = torch.minimum(adam.least, objective), adam.before
        if i and i % max(1, self.steps // 10) == 0:
            lost, before = lost | (least > _SAME * before), least
        return adam._replace(least=least, before=before, closed=lost)
