"""The nearest adversarial example, by many short searches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count, cycle
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.adaptive_ball import AdaptiveBall
from advkit.attacks.engine.boundary_walk import BoundaryWalk, cosine_fractions
from advkit.attacks.engine.minimum_norm import OptionalBudgetAttack, candidates
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Nearest
from advkit.attacks.engine.rows import select, update_rows
from advkit.attacks.engine.sparse_descent import SparseDescent
from advkit.core import checks
from advkit.core.norms import ORDER, Norm
from advkit.core.randomness import sample_keys, uniform


@dataclass(frozen=True)
class Tuning:
    """Constants of the search, measured on the nets of docs/results.md."""

    walk_steps: int = 25  # of a walk; on nets with misleading gradients 100 find nothing more
    sparse_walk_steps: int = 13  # of a walk in l0
    descent_share: float = 0.5  # of the steps, for the descents in l0 and l1
    descent_alpha: float = 3.0  # of the descent in l1, see `AdaptiveBall`
    descent_momentum: float = 0.75
    max_candidates: int = 5  # classes to aim at
    probe_steps: int = 4  # of the first walk to each class, enough where logits are linear
    patience: int = 600  # steps without a gain that finish a sample
    min_gain: float = 1e-3  # share of the distance that counts as a gain


TUNING = Tuning()
# Steps of one descent; the other norms have none. In l0 a long one changes fewer features than two.
DESCENT_STEPS: dict[Norm, int] = {"l0": 1000, "l1": 250}
# A walk is given up at this multiple of the nearest distance. In l1 the distance falls last.
HOPELESS_RATIO: dict[Norm, float] = {"l0": 1.5, "l1": 4.0, "l2": 2.0, "linf": 2.0}


class _Start(NamedTuple):
    """Start of one search, and the class that it aims at."""

    point: Literal["input", "nearest"] = "input"
    share: float = 0.0  # of the way from that point to `toward`
    toward: Literal["noise", "gray"] = "noise"  # random features, or the middle of the bounds
    rank: int | None = None  # of the class by likelihood at the input, `None` for any class


NEAREST = _Start("nearest")
HALF_NOISE = _Start(share=0.5)
LIKELIEST_FROM_NOISE = _Start(share=0.5, rank=0)

DESCENTS = (_Start(), _Start(share=0.25))
# The first walks find most on any net, the later ones add what is rare.
FIRST = (
    LIKELIEST_FROM_NOISE,
    NEAREST,
    _Start(),
    _Start(rank=1),
    HALF_NOISE,
    _Start(share=0.25, toward="gray"),
    _Start(share=0.25),
    _Start(share=0.5, rank=1),
    _Start(share=0.5, toward="gray"),
    _Start(share=1.0),
    _Start(rank=2),
    NEAREST,
)
# These are repeated with other noise.
AGAIN = (
    HALF_NOISE,
    _Start("nearest", share=0.5),
    _Start(share=0.25),
    LIKELIEST_FROM_NOISE,
    _Start("nearest", share=0.25),
    NEAREST,
)
AGAIN_IN_L0 = (HALF_NOISE, _Start(share=0.25), _Start(share=0.1), LIKELIEST_FROM_NOISE)


class _Search(NamedTuple):
    """One search of the plan."""

    start: _Start
    steps: int
    descent: bool = False  # whether it is a descent instead of a walk


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class MinimumNorm(OptionalBudgetAttack):
    """The nearest adversarial example in l0, l1, l2 or linf, for a given number of steps.

    It is the recommended minimum-norm attack. Use 100 steps for a quick answer, and 1000 for the
    smallest distance that is known.

    One long search ends in one of many local minima. This attack spends its steps on many short
    ones. The first have four steps to each of the five likeliest classes, which is enough where the
    logits are linear. The others are walks along the decision boundary, as in `FAB`, of 25 steps
    each. They begin at the input, at points between the input and random or gray images, and at the
    nearest success so far. They aim at any class, and at each of the likeliest classes. Where
    gradients at the input mislead, as on nets trained in another norm, a start halfway to a random
    image is worth more than a longer walk. In l0 and l1, half of the steps go to the descents of
    `SigmaZero` and of `FMN`, the latter with momentum. A walk in l0 has 13 steps.

    A walk that stays far from the nearest success is given up, and its steps go to the next one. A
    sample for which 600 steps in a row find nothing nearer is finished.

    The attack is advkit's own. The walk is that of Croce and Hein (2020, arXiv:1907.02044) with the
    deviations of `FAB`. Its form in l0 is new: it moves to the point that crosses the plane of the
    boundary with the fewest changed features, each at its bound.

    Args:
        norm: `"l0"`, `"l1"`, `"l2"` or `"linf"`, of the distance; l0 counts changed features.
        steps: gradient steps for each sample, at most; each costs one forward and one backward
            pass. A few forward passes are added at the end and where most of a batch is finished.
        eps: `None`, or the radius of a ball (in l0 a number of features), as a number or one for
            each sample `(n,)`. MinimumNorm is a budget attack then: a sample is finished at its
            first success in the ball. A failure returns its nearest success, projected onto the
            ball, or the clean input without one.
        seed: seed of the random starts.
        progress: show a progress bar (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.

    Example:
        >>> import torch
        >>> from advkit import attacks
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> result = attacks.MinimumNorm(norm="l0").run(net, torch.rand(5, 1, 8, 8))
        >>> bool(result.success.all()), result.norm
        (True, 'l0')
    """

    norm: Norm = "l2"
    steps: int = 100
    eps: float | Tensor | None = None
    seed: int = 0
    progress: bool = False
    _refine_steps: ClassVar[int] = 2

    def __post_init__(self) -> None:
        checks.one_of("norm", self.norm, tuple(ORDER))
        checks.integer("steps", self.steps, at_least=1)
        if self.eps is not None:
            checks.eps(self.eps)
        checks.integer("seed", self.seed)
        checks.boolean("progress", self.progress)

    def _total_steps(self, problem: Problem) -> int:
        return self.steps

    def _search_nearest(self, problem: Problem, at: Iterate) -> Nearest:
        nearest = Nearest.empty(problem.x)
        classes = candidates(at, problem.goal, TUNING.max_candidates)
        left = torch.full_like(problem.rows, self.steps)
        idle, radii = torch.zeros_like(left), self._radii(problem)
        for seed, search in zip(count(1), self._plan(len(classes)), strict=False):
            going = (left >= search.steps) & (idle < TUNING.patience) & (nearest.distance > radii)
            rows = going.nonzero().flatten()
            if not len(rows):
                break
            part, before = problem.select(rows), select(nearest, rows)
            taken = problem.statistics.steps[part.rows]
            rank = search.start.rank
            aimed = part.with_candidate(None if rank is None else classes[rank][rows])
            found = self._find(aimed, search, self._begin(part, search.start, before, seed), before)
            taken = problem.statistics.steps[part.rows] - taken + 1
            left[rows] -= taken
            gained = found.distance < (1 - TUNING.min_gain) * nearest.distance[rows]
            idle[rows] = torch.where(gained, 0, idle[rows] + taken)
            update_rows(nearest, rows, found)
        return nearest

    def _find(self, problem: Problem, search: _Search, start: Tensor, nearest: Nearest) -> Nearest:
        """Return `nearest` with the successes of one search that are nearer; it is overwritten."""
        eps = None if self.eps is None else self._radii(problem)
        steps = max(1, search.steps - 1)  # the pass of the start counts as a step
        if search.descent:
            return self._descent(steps).search(problem, start, nearest, eps=eps)
        fractions = [1.0] * steps if self.norm == "l0" else cosine_fractions(steps)
        limit = HOPELESS_RATIO[self.norm] * nearest.distance
        walk = BoundaryWalk(fractions=fractions)
        return walk.search(problem, start, nearest, limit=limit, eps=eps)

    def _descent(self, steps: int) -> SparseDescent | AdaptiveBall:
        """Return the descent of this norm."""
        if self.norm == "l0":
            return SparseDescent(steps=steps)
        return AdaptiveBall(
            norm=self.norm,
            steps=steps,
            alpha_init=TUNING.descent_alpha,
            momentum=TUNING.descent_momentum,
        )

    def _plan(self, classes: int) -> Iterator[_Search]:
        """Return the searches, without those that aim at a class beyond the `classes` likeliest."""
        probes = self._probes(classes)
        descents = self._descents(self.steps - sum(probe.steps for probe in probes))
        left = self.steps - sum(search.steps for search in (*probes, *descents))
        l0 = self.norm == "l0"
        each = _even_part(left, TUNING.sparse_walk_steps if l0 else TUNING.walk_steps)
        starts = cycle(AGAIN_IN_L0) if l0 else chain(FIRST, cycle(AGAIN))
        walks = (_Search(start, each) for start in starts)
        for search in chain(probes, descents, walks):
            if search.start.rank is None or search.start.rank < classes:
                yield search

    def _probes(self, classes: int) -> list[_Search]:
        """Return a short walk to each of the likeliest classes, if they are a part of the steps."""
        if classes * TUNING.probe_steps > self.steps // 2:
            return []
        return [_Search(_Start(rank=k), TUNING.probe_steps) for k in range(classes)]

    def _descents(self, steps: int) -> list[_Search]:
        """Return the descents of the plan in their share of `steps`; l2 and linf have none."""
        total = int(TUNING.descent_share * steps)
        if self.norm not in DESCENT_STEPS or not total:
            return []
        each = _even_part(total, DESCENT_STEPS[self.norm])
        starts = cycle(DESCENTS)
        return [_Search(next(starts), each, descent=True) for _ in range(total // each)]

    def _begin(self, problem: Problem, start: _Start, nearest: Nearest, seed: int) -> Tensor:
        """Return the first iterates of a search, `(n, *features)`."""
        x, bounds = problem.x, problem.model.bounds
        point = nearest.x_adv if start.point == "nearest" else x
        if not start.share:
            return point
        if start.toward == "gray":
            return point.lerp(torch.full_like(x, sum(bounds) / 2), start.share)
        random = uniform(sample_keys(x, bounds, self.seed, seed), x[0].numel(), x.dtype)
        noise = (bounds[0] + (bounds[1] - bounds[0]) * random).to(x.dtype).view(x.shape)
        return problem.clip(point.lerp(noise, start.share))


def _even_part(total: int, length: int) -> int:
    """Return the length of each of the parts of about `length` into which `total` is divided."""
    return max(1, total // max(1, round(total / length)))
