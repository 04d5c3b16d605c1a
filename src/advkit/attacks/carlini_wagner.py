"""Carlini and Wagner's attack in l2."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from advkit.attacks.engine.box_adam import SCHEDULES, BoxAdam, Schedule
from advkit.attacks.engine.constant_search import PenaltyAttack, PenaltyState
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Nearest
from advkit.core import checks
from advkit.core.norms import Norm
from advkit.core.tensors import at_least_float32

_AMPLE = 2.0  # the first constant, as a multiple of what a linear model would need
_PUBLISHED_CONST = 1e-3


@dataclass(frozen=True, kw_only=True, repr=False)
class CarliniWagnerL2(PenaltyAttack):
    """Carlini and Wagner's attack in l2 (2017, arXiv:1608.04644).

    Minimizes |x_adv - x|^2 + const * max(confidence - margin, 0) by Adam, over a variable that
    tanh keeps in the box; a search over the constant finds the smallest that still succeeds. Every
    decision is a sample's own.

    Deviations, all undone by `schedule="published"`: the first search steps go for the likeliest classes
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
        schedule: `"adaptive"`; or `"published"`, the schedule of the paper's code, for comparison; give it its time too, with
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
    schedule: Schedule = "adaptive"
    norm: Norm = field(default="l2", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative("confidence", self.confidence)
        if self.lr is not None:
            checks.positive("lr", self.lr)
        checks.one_of("schedule", self.schedule, SCHEDULES)

    @property
    def _confidence(self) -> float:
        return self.confidence

    @property
    def _initial_factor(self) -> float:
        return _AMPLE * 2

    def _search_nearest(self, problem: Problem, at: Iterate) -> Nearest:
        if self.schedule != "published":
            return super()._search_nearest(problem, at)
        one = at_least_float32(problem.x).new_ones(len(problem.x))
        const = one * (self.initial_const or _PUBLISHED_CONST)
        penalty = PenaltyState(const, torch.zeros_like(one), expected_distance=one)
        return self._search_from_input(problem, penalty)

    def _descend(self, problem: Problem, start: Tensor, penalty: PenaltyState) -> Nearest:
        adam = BoxAdam(
            steps=self.steps,
            confidence=self.confidence,
            lr=self.lr,
            published=self.schedule == "published",
        )
        return adam.descend(problem, start, penalty)
