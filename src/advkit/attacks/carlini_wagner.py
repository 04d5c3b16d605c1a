"""Carlini and Wagner's attack in l2."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from advkit.attacks.engine.box_adam import BoxAdam
from advkit.attacks.engine.constant_search import PenaltyAttack, PenaltyState
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Nearest
from advkit.attacks.engine.schedules import SCHEDULES, Schedule
from advkit.core import checks
from advkit.core.norms import Norm
from advkit.core.tensors import at_least_float32


@dataclass(frozen=True)
class Tuning:
    """Constants of the search. Those of the descent are in `engine/box_adam.py`."""

    initial_factor: float = 2.0  # first constant, as a multiple of what a linear model needs
    published_const: float = 1e-3  # first constant in the code of the paper


TUNING = Tuning()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CarliniWagnerL2(PenaltyAttack):
    """Carlini and Wagner's attack in l2 (2017, arXiv:1608.04644).

    Minimizes |x_adv - x|^2 + const * max(confidence - margin, 0) by Adam, with x_adv a function of
    tanh, which keeps it in the box, and searches for the smallest constant that still succeeds.
    Each sample has its own constant.

    Use it for examples with a `confidence`. Where gradients at the input mislead, as on nets
    trained in linf, its distances are twice those of `MinimumNorm`.

    The objective is that of inputs scaled to [0, 1], so that constants and learning rates have the
    same meaning for all bounds. A search step ends for a sample whose objective no longer falls, as
    in the paper's code. `success` is false for a margin below the confidence.

    Deviations from the paper, none of which `schedule="published"` has:

    - The first search steps aim at the likeliest classes one after another. This is the "best case"
      of the paper, restricted to the classes that matter.
    - The later search steps begin at the nearest success instead of the input, with a fifth of the
      learning rate.
    - The first constant and the learning rate follow from the gradient at the input.
    - The learning rate follows a cosine schedule down to zero in each search step.
    - The range of tanh is a fifth wider than the box and clipped to it, so that features at the
      bounds have a gradient and can move.
    - A success is moved towards the input as far as it remains a success.
    - A sample that a search step does not bring nearer leaves the search.

    Args:
        confidence: margin in logits that an adversarial example must have, not negative.
        search_steps: number of constants that are tried.
        steps: steps of Adam for each constant; each costs one forward and one backward pass.
        lr: learning rate of Adam; `None` takes one whose first step is as long as the distance to
            the boundary of a linear model, and 0.01 in the published schedule.
        initial_const: first constant; `None` takes twice what a linear model needs, and 0.001 in
            the published schedule.
        candidates: greatest number of classes to aim at, the likeliest first. A targeted attack and
            the published schedule ignore it.
        schedule: `"adaptive"`, or `"published"` for the schedule of the paper's code. To reproduce
            the paper, also pass `steps=10_000, lr=0.01`.
        progress: show a progress bar (needs the extra `report`).

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
        return TUNING.initial_factor * 2  # a linear model needs twice `min_const`

    def _search_nearest(self, problem: Problem, at: Iterate) -> Nearest:
        if self.schedule != "published":
            return super()._search_nearest(problem, at)
        one = at_least_float32(problem.x).new_ones(len(problem.x))
        const = one * (self.initial_const or TUNING.published_const)
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
