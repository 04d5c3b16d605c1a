"""HopSkipJump: along the decision boundary by labels alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from advkit.attacks.engine.black_box import BlackBoxAttack
from advkit.attacks.engine.problem import Problem
from advkit.attacks.engine.records import Best, Nearest
from advkit.attacks.engine.rows import select, update_rows
from advkit.core import checks
from advkit.core.norms import Norm, lp_norm, normalize, per_sample
from advkit.core.randomness import derived_keys, normal, sample_keys, uniform
from advkit.core.tensors import at_least_float32

_HALVINGS = 9  # of the way to the boundary, so that it is known to a 512th of the distance
_STEPS = 8  # lengths that a step away from the boundary is tried with
_FEWEST = 10  # directions that are worth a round
_MEMORY = 0.5  # weight of the normal before
_STRIDE = 7046029254386353131  # between the keys of a sample's probes


@dataclass(frozen=True, kw_only=True, repr=False)
class HopSkipJump(BlackBoxAttack):
    """HopSkipJump (Chen, Jordan and Wainwright, 2020, arXiv:1904.02144): labels only.

    From a random input of another label to the decision boundary, and then round by round: labels
    of points around the boundary give its normal, a step goes along the normal, and halving leads
    back to the boundary, nearer to the input. In each round all samples are asked together.

    Deviations: the boundary is met to a 512th of the distance instead of a share of d^-1.5 of it,
    with a radius of the probes to match; half of the normal before is added to the new one; probes
    are Gaussian in linf too.

    Args:
        norm: `"l2"` or `"linf"`, of the distance.
        max_queries: the most samples that may be sent for each input, the first and the last look
            included; at least 3.
        init_gradient_queries: probes of the first round; the t-th has sqrt(t) times as many.
        init_points: inputs `(m, *features)` to begin at; each sample tries those nearest to it first
            and takes the first that meets its goal. `None` tries uniform noise, which seldom does
            for a target: give inputs of that class. A sample for which no start meets the goal is
            a failure, marked in the result's `no_start`.
        init_trials: how many points to try, at least 1.
        batch_size: probes sent at once, at most; an evaluation holds it to its own.
        seed: of all draws, an int; they do not depend on the rest of the batch.
        progress: show a bar over the queries (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.

    Example:
        >>> import numpy as np, torch
        >>> from sklearn.neighbors import KNeighborsClassifier
        >>> from advkit import attacks
        >>> x = np.random.default_rng(0).random((80, 4))
        >>> neighbours = KNeighborsClassifier().fit(x, x.sum(1) > 2)
        >>> result = attacks.HopSkipJump(max_queries=300).run(neighbours, torch.from_numpy(x[:5]))
        >>> bool(result.success.all()), int(result.queries.forward.max()) <= 300
        (True, True)
    """

    norm: Norm = "l2"
    max_queries: int = 2000
    init_gradient_queries: int = 100
    init_points: Tensor | None = None
    init_trials: int = 100
    batch_size: int = 1024
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        checks.one_of("norm", self.norm, ("l2", "linf"))
        checks.integer("max_queries", self.max_queries, at_least=3)
        checks.integer("init_gradient_queries", self.init_gradient_queries, at_least=1)
        if self.init_points is not None and not isinstance(self.init_points, Tensor):
            raise TypeError(
                f"`init_points` must be a torch.Tensor, got {type(self.init_points).__name__}"
            )
        checks.integer("init_trials", self.init_trials, at_least=1)
        checks.integer("batch_size", self.batch_size, at_least=1)
        checks.integer("seed", self.seed)
        checks.boolean("progress", self.progress)

    def _search(self, problem: Problem) -> Nearest:
        init_points = self._checked_init_points(problem)
        nearest = self._empty_record(problem)
        if problem.statistics.best_so_far is not None:
            problem.statistics.best_so_far = nearest  # filled as the search goes on
        at = problem.evaluate_clean(nearest)
        search = _Search(self, problem, nearest)
        begun = search.begin((~at.success).nonzero().flatten(), init_points)
        search.walk(begun)
        return nearest

    def _total_steps(self, problem: Problem) -> int:
        return self.max_queries

    def _empty_record(self, problem: Problem) -> Nearest:
        return Nearest.empty(problem.x)

    def _verify(self, problem: Problem, found: Best | Nearest) -> Best:
        seen = super()._verify(problem, found)
        # a failure gives the clean input, which was none at the first look
        return Best(torch.where(per_sample(seen.success, seen.x_adv), seen.x_adv, problem.x),
                    seen.violation)  # fmt: skip

    def _checked_init_points(self, problem: Problem) -> Tensor | None:
        if self.init_points is None:
            return None
        if self.init_points.shape[1:] != problem.x.shape[1:] or not len(self.init_points):
            raise ValueError(
                f"`init_points` must have shape (m, {', '.join(map(str, problem.x.shape[1:]))}) like the "
                f"samples of x, got {tuple(self.init_points.shape)}"
            )
        return checks.inputs(self.init_points, problem.model.bounds).to(problem.x)


class _Search:
    """One run: who may still be asked how often, and the nearest successes.

    Samples are known by their rows in the batch.
    """

    def __init__(self, attack: HopSkipJump, problem: Problem, nearest: Nearest) -> None:
        self.attack = attack
        self.problem = problem
        self.nearest = nearest
        self.keys = sample_keys(problem.x, problem.model.bounds, attack.seed)

    @property
    def left(self) -> Tensor:
        """Queries that each sample has left, besides the last look, `(n,)`."""
        return self.attack.max_queries - 1 - self.problem.statistics.forward

    def ask(self, x_adv: Tensor, rows: Tensor) -> Tensor:
        """Whether each of `x_adv`, candidates for the samples `rows`, is a success; bool `(m,)`."""
        before = int(self.problem.statistics.forward.max())
        size = self.attack.batch_size
        parts = [slice(i, i + size) for i in range(0, len(rows), size)]
        found = torch.cat([self.problem.reaches_goal(x_adv[part], rows[part]) for part in parts])
        self.problem.statistics.advance(int(self.problem.statistics.forward.max()) - before)
        return found

    def keep(self, x_adv: Tensor, rows: Tensor) -> None:
        """Successes `x_adv` of the samples `rows`, if they are nearer than those before."""
        part = self.problem.select(rows)
        found = Nearest(
            x_adv, x_adv.new_full((len(rows),), -1), at_least_float32(part.distance(x_adv))
        )
        update_rows(self.nearest, rows, select(self.nearest, rows).nearer(found))

    def begin(self, rows: Tensor, init_points: Tensor | None) -> Tensor:
        """Give the samples `rows` a first success, on the boundary; those that have got one."""
        todo = rows
        for points in self._candidates(init_points):
            todo = todo[self.left[todo] > 0]
            if not len(todo):
                break
            x_adv = points(todo)
            hit = self.ask(x_adv, todo)
            self.keep(x_adv[hit], todo[hit])
            todo = todo[~hit]
        found = self.nearest.success[rows]
        self.problem.statistics.no_start[rows[~found]] = True
        begun = rows[found & (self.left[rows] >= _HALVINGS)]
        if len(begun):
            self._approach(self.nearest.x_adv[begun], begun)
        return begun

    def _candidates(self, init_points: Tensor | None) -> Iterator[Callable[[Tensor], Tensor]]:
        """What to try one after another: functions of rows."""
        if init_points is None:
            yield from (partial(self._noise, i) for i in range(self.attack.init_trials))
            return
        x = at_least_float32(self.problem.x).flatten(1)
        order = torch.cdist(x, at_least_float32(init_points).flatten(1)).argsort(dim=1, stable=True)
        for column in order.unbind(1)[: self.attack.init_trials]:
            yield partial(_picked, init_points, column)

    def _noise(self, i: int, rows: Tensor) -> Tensor:
        """Uniform noise over the bounds, the `i`-th for each of `rows`."""
        x, (lower, upper) = self.problem.x, self.problem.model.bounds
        u = uniform(derived_keys(self.keys[rows], -1 - i), x[:1].numel(), x.dtype)
        return self.problem.clip(lower + (upper - lower) * u.view(-1, *x.shape[1:]))

    def walk(self, rows: Tensor) -> None:
        """Round after round from the boundary points of the samples `rows`."""
        normals = torch.zeros_like(at_least_float32(self.problem.x))
        least = _FEWEST + 1 + _HALVINGS  # a round with one step
        for i in range(1, self.attack.max_queries):
            rows = rows[self.left[rows] >= least]
            if not len(rows):
                break
            x_adv = self.nearest.x_adv[rows]
            most = int(self.attack.init_gradient_queries * math.sqrt(i))
            counts = (self.left[rows] - 1 - _HALVINGS).clamp_max(max(most, _FEWEST))
            normal = self._normal(i, x_adv, rows, counts)
            normals[rows] = normalize(_MEMORY * normals[rows] + normal, "l2")
            moved, stepped = self._step(i, x_adv, normals[rows], rows)
            self._approach(moved[stepped], rows[stepped])

    def _normal(self, i: int, x_adv: Tensor, rows: Tensor, counts: Tensor) -> Tensor:
        """The boundary's normal at `x_adv`, towards success, from `counts` `(k,)` probes each.

        The mean of the probes' directions, each with the sign of its answer; the mean answer is
        taken off, which lowers the variance (eq. 16 of the paper).
        """
        d = x_adv[:1].numel()
        delta = at_least_float32(x_adv - self.problem.x[rows])
        radius = lp_norm(delta, "l2") * math.sqrt(d) * 2.0**-_HALVINGS
        owner = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)
        number = torch.arange(len(owner), device=rows.device) - (counts.cumsum(0) - counts)[owner]
        hits, total = delta.new_zeros(len(rows)), delta.new_zeros(2, len(rows), d)
        size = self.attack.batch_size
        for first in range(0, len(owner), size):
            at, k = owner[first : first + size], number[first : first + size]
            keys = derived_keys(self.keys[rows[at]], i) + k * _STRIDE
            unit = normalize(normal(keys, d, x_adv.dtype), "l2")
            points = self.problem.clip(
                x_adv[at] + (radius[at, None] * unit).view(-1, *x_adv.shape[1:])
            )
            gone = at_least_float32(points - x_adv[at]).flatten(1)  # the clip has part in it
            success = self.ask(points, rows[at]).to(delta.dtype)
            hits.index_add_(0, at, success)
            total.index_add_(1, at, torch.stack([success[:, None] * gone, gone]))
        found = total[0] - (hits / counts)[:, None] * total[1]
        return normalize(found.view_as(delta), "l2")

    def _step(self, i: int, x_adv: Tensor, normal: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """A success away from the boundary along the normal, and for which of `rows` there is one.

        The length is halved until it is one.
        """
        move = normal.sign() if self.attack.norm == "linf" else normal
        length = self.problem.select(rows).distance(x_adv) / math.sqrt(i)
        found, stepped = x_adv.clone(), torch.zeros_like(rows, dtype=torch.bool)
        for _ in range(_STEPS):
            todo = (~stepped & (self.left[rows] > _HALVINGS)).nonzero().flatten()
            if not len(todo):
                break
            far = (
                at_least_float32(x_adv[todo])
                + per_sample(length[todo].to(move.dtype), move) * move[todo]
            )
            points = self.problem.clip(far)
            hit = self.ask(points, rows[todo])
            found[todo[hit]], stepped[todo[hit]] = points[hit], True
            length = length / 2
        return found, stepped

    def _approach(self, x_adv: Tensor, rows: Tensor) -> None:
        """From successes `x_adv` towards the inputs of `rows` up to the boundary, by halving."""
        if not len(rows):
            return
        part = self.problem.select(rows)
        distance, delta = part.distance(x_adv), x_adv - part.x
        inner, outer, best = torch.zeros_like(distance), torch.ones_like(distance), x_adv
        for _ in range(_HALVINGS):
            middle = (inner + outer) / 2
            if self.attack.norm == "linf":
                radius = per_sample(middle * distance, delta)
                nearer = torch.maximum(torch.minimum(delta, radius), -radius)
            else:
                nearer = per_sample(middle, delta) * delta
            points = part.clip(part.x + nearer)
            hit = self.ask(points, rows)
            best = torch.where(per_sample(hit, points), points, best)
            inner, outer = torch.where(hit, inner, middle), torch.where(hit, middle, outer)
        self.keep(best, rows)


def _picked(init_points: Tensor, order: Tensor, rows: Tensor) -> Tensor:
    """Of `init_points` those that stand in `order` `(n,)` at `rows`."""
    return init_points[order[rows]]
