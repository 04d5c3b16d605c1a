"""Fast adaptive boundary attack."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.boundary_walk import PUBLISHED, BoundaryWalk, cosine_fractions
from advkit.attacks.engine.minimum_norm import OptionalBudgetAttack, candidates
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Nearest
from advkit.attacks.engine.rows import select, update_rows
from advkit.attacks.engine.schedules import SCHEDULES, Schedule
from advkit.core import checks
from advkit.core.norms import DUAL, Norm, lp_norm, normalize, per_sample
from advkit.core.randomness import normal, sample_keys, uniform


@dataclass(frozen=True)
class Tuning:
    """Constants of the adaptive schedule, measured on the nets of docs/results.md."""

    candidates: int = 5  # classes to aim at
    published_candidates: int = 9
    min_steps: int = 5  # for each class
    hopeless_ratio: float = 1.2  # a class is given up at this multiple of the nearest distance
    round_steps: int = 100  # after which a walk from a random start gains more than a longer one


TUNING = Tuning()


class _Plan(NamedTuple):
    """One walk of the schedule."""

    fractions: list[float]
    candidate: int | Literal["nearest"] | None  # rank of the class, that of the success, or any
    restart: int | None  # 0 begins at the input, `None` at the nearest success, others at random
    limited: bool = False  # whether it is given up if it is far from the nearest success
    patient: bool = True  # whether it takes all steps, also if the distance no longer shrinks


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FAB(OptionalBudgetAttack):
    """Fast adaptive boundary attack (Croce and Hein, 2020, arXiv:1907.02044).

    The attack finds nearby adversarial examples in about 100 passes. Each step approximates the
    decision boundary by the plane that the gradient at the iterate gives, moves to the point of
    that plane in the box that is nearest to the iterate, and then part of the way to the one that
    is nearest to the input. The walk thus follows the boundary towards the input. A success is
    moved back towards the input first. As in the targeted form of the paper, the attack aims at the
    likeliest classes one after another, and begins again at random points.

    Half of the first hundred steps go to the classes, the other half to a walk that continues from
    the nearest success. Each further hundred is a walk from a random point at half the distance,
    in turn to the class of the nearest success and to any class. A walk to a class ends early if it
    cannot come nearer than the nearest success.

    Deviations from the paper, the first four of which `schedule="published"` does not have:

    - The plane's normal is a running mean over the steps, which carries the walk across the kinks
      of nets with ReLU and max-pooling.
    - The overshoot grows after a failure and shrinks after a success; it is 1.05 in the paper.
    - The fraction of the way to the input's projection follows a cosine schedule. In the paper it
      is at most 0.1, which takes ten times as many steps.
    - The backward step shrinks with that fraction. The plane of the success is kept, which saves a
      second evaluation. In the paper the distance is multiplied by 0.9.
    - The untargeted form, which compares the planes of all classes in each step, is left out.
    - The projection onto plane and box is found by Newton's method, without sorting.
    - The final search on the segment to the input takes two steps instead of three.
    - Without a success and `eps`, a random start is anywhere in the box.

    Args:
        norm: `"l2"`, `"linf"` or `"l1"`, of the distance.
        steps: gradient steps in total, and in the published schedule for each class; each costs at
            most one forward and one backward pass, and in the published schedule another forward
            pass after a success.
        candidates: greatest number of classes to aim at; `None` takes five, and nine in the
            published schedule. The adaptive schedule takes fewer where `steps` would leave less
            than five for each. A targeted attack ignores it.
        restarts: number of runs, each of `steps` steps; all except the first begin at random.
        eps: `None`, or the radius of a ball, a number or one for each sample `(n,)`. FAB is a
            budget attack then: a sample is finished at its first success in the ball. A failure
            returns its nearest success, projected onto the ball, or the clean input without one.
        schedule: `"adaptive"`, or `"published"` for the targeted form of the paper's code: nine
            classes of 100 steps each.
        seed: seed of the random starts.
        progress: show a progress bar (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.

    Example:
        >>> import torch
        >>> from advkit import attacks
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> result = attacks.FAB().run(net, torch.rand(5, 1, 8, 8))
        >>> bool(result.success.all()), result.norm
        (True, 'l2')
    """

    norm: Norm = "l2"
    steps: int = 100
    candidates: int | None = None
    restarts: int = 1
    eps: float | Tensor | None = None
    schedule: Schedule = "adaptive"
    seed: int = 0
    progress: bool = False
    _refine_steps: ClassVar[int] = 2

    def __post_init__(self) -> None:
        checks.one_of("norm", self.norm, tuple(DUAL))
        checks.integer("steps", self.steps, at_least=1)
        if self.candidates is not None:
            checks.integer("candidates", self.candidates, at_least=1)
        checks.integer("restarts", self.restarts, at_least=1)
        if self.eps is not None:
            checks.eps(self.eps)
        checks.one_of("schedule", self.schedule, SCHEDULES)
        checks.integer("seed", self.seed)
        checks.boolean("progress", self.progress)

    def _search_nearest(self, problem: Problem, at: Iterate) -> Nearest:
        """Follow the walks of the schedule, each with the samples that are not finished."""
        nearest = Nearest.empty(problem.x)
        classes = candidates(at, problem.goal, self._max_classes)
        for plan in self._plans(len(classes)):
            rows = (nearest.distance > self._radii(problem)).nonzero().flatten()
            if not len(rows):
                break
            ranked = [ranks[rows] for ranks in classes]
            found = self._walk(problem.select(rows), plan, ranked, select(nearest, rows))
            update_rows(nearest, rows, found)
        return nearest

    @property
    def _max_classes(self) -> int:
        if self.schedule == "published":
            return self.candidates or TUNING.published_candidates
        return min(self.candidates or TUNING.candidates, self._rounds[0] // (2 * TUNING.min_steps))

    @property
    def _rounds(self) -> list[int]:
        """Steps of the adaptive schedule before the first random start, and after each of them."""
        total = self.steps * self.restarts
        return _split_evenly(total, max(self.restarts, total // TUNING.round_steps))

    def _plans(self, classes: int) -> list[_Plan]:
        """Return the walks of the schedule to `classes` classes."""
        if self.schedule == "published":
            fractions = [PUBLISHED.max_fraction] * self.steps
            return [
                _Plan(fractions, k if classes else None, k * self.restarts + run if run else 0)
                for k in range(max(1, classes))
                for run in range(self.restarts)
            ]
        first, *later = self._rounds
        plans = _first_round(classes, first)
        for i, steps in enumerate(later):
            candidate: Literal["nearest"] | None = None if i % 2 else "nearest"
            plans.append(_Plan(cosine_fractions(steps), candidate, restart=i + 1))
        return plans

    def _total_steps(self, problem: Problem) -> int:
        classes = 1 if problem.goal.targeted else self._max_classes
        return self.steps * self.restarts * (classes if self.schedule == "published" else 1)

    def _walk(
        self, problem: Problem, plan: _Plan, classes: list[Tensor], nearest: Nearest
    ) -> Nearest:
        """Follow one walk of the schedule; `classes` are the likeliest ones, each `(n,)`."""
        start = nearest.x_adv if plan.restart is None else problem.x
        if plan.restart:
            start = self._random_start(problem, plan.restart, nearest.distance)
        published = self.schedule == "published"
        walk = BoundaryWalk(fractions=plan.fractions, patient=plan.patient, published=published)
        ratio = TUNING.hopeless_ratio if plan.limited else math.inf
        return walk.search(
            problem.with_candidate(_candidate(problem, plan, classes, nearest)),
            start,
            nearest,
            limit=ratio * nearest.distance,
            eps=None if self.eps is None else self._radii(problem),
        )

    def _random_start(self, problem: Problem, restart: int, distance: Tensor) -> Tensor:
        """Return points at half of `distance` `(n,)` or of `eps`, the smaller one, and in the box.

        A sample without either begins anywhere in the box.
        """
        x, (lower, upper) = problem.x, problem.model.bounds
        keys, size = sample_keys(x, problem.model.bounds, self.seed, restart), x[0].numel()
        linf = self.norm == "linf"
        drawn = 2 * uniform(keys, size, x.dtype) - 1 if linf else normal(keys, size, x.dtype)
        direction = normalize(drawn.view(x.shape), self.norm)
        farthest = lp_norm(torch.maximum(x - lower, upper - x), self.norm)
        radius = torch.minimum(distance, farthest)
        if self.eps is not None:
            radius = torch.minimum(radius, self._radii(problem))
        return problem.clip(x + per_sample(radius / 2, x) * direction)


def _candidate(
    problem: Problem, plan: _Plan, classes: list[Tensor], nearest: Nearest
) -> Tensor | None:
    """Return the classes `(n,)` to walk to, `None` for any; `classes` are the likeliest ones."""
    if not classes or plan.candidate is None:
        return None
    if plan.candidate != "nearest":
        return classes[plan.candidate]
    return candidates(problem.forward(nearest.x_adv, differentiate=False), problem.goal, 1)[0]


def _first_round(classes: int, steps: int) -> list[_Plan]:
    """Return the walks to `classes` classes, and one that continues from the nearest success."""
    each = steps // (2 * classes) if classes > 1 else 0
    fractions = cosine_fractions(each)
    plans = [_Plan(fractions, k, 0, True, False) for k in range(classes if each else 0)]
    left = cosine_fractions(steps - len(plans) * each)
    return [*plans, _Plan(left, None, None, patient=False)]


def _split_evenly(total: int, parts: int) -> list[int]:
    """Return `parts` integers that sum to `total`, the greater ones first."""
    return [total // parts + (i < total % parts) for i in range(parts)]
