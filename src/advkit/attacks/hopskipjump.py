"""HopSkipJump: a walk along the decision boundary that needs labels only."""

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

_KEY_STRIDE = 7046029254386353131  # between the random keys of a sample's probes


@dataclass(frozen=True)
class Tuning:
    """Constants of the search."""

    bisections: int = 9  # to the boundary, which they locate to 1/512 of the distance
    step_trials: int = 8  # step sizes that are tried for a step away from the boundary
    min_probes: int = 10  # fewer do not estimate a normal
    normal_momentum: float = 0.5  # weight of the previous normal


TUNING = Tuning()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class HopSkipJump(BlackBoxAttack):
    """HopSkipJump (Chen, Jordan and Wainwright, 2020, arXiv:1904.02144): labels only.

    The walk begins at a random input with another label and moves to the decision boundary. In each
    round the labels of points around the boundary give an estimate of its normal, a step follows
    the normal, and a bisection returns to the boundary, closer to the input. Each round queries the
    model for all samples together.

    Deviations from the paper:

    - The boundary is located to 1/512 of the distance instead of a fraction d^-1.5 of it, with a
      matching radius of the probes.
    - Half of the previous normal is added to the new one.
    - Probes are Gaussian in linf too.

    Args:
        norm: `"l2"` or `"linf"`, of the distance.
        max_queries: greatest number of queries for each input, at least 3; the evaluation of the
            clean input and the final verification count.
        init_gradient_queries: probes of the first round; round t has sqrt(t) times as many.
        init_points: inputs `(m, *features)` to begin at; each sample tries the nearest points first
            and takes the first one that meets its goal. `None` tries uniform noise, which rarely
            meets a target: pass inputs of the target class. A sample without a starting point is a
            failure that the result's `no_start` marks.
        init_trials: greatest number of points to try, at least 1.
        batch_size: greatest number of probes in one call of the model; an evaluation limits it to
            its own.
        seed: seed of all random draws, an int; they do not depend on the rest of the batch.
        progress: show a progress bar over the queries (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.

    Example:
        >>> import numpy as np, torch
        >>> from sklearn.neighbors import KNeighborsClassifier
        >>> from advkit import attacks
        >>> x = np.random.default_rng(0).random((80, 4))
        >>> neighbors = KNeighborsClassifier().fit(x, x.sum(1) > 2)
        >>> result = attacks.HopSkipJump(max_queries=300).run(neighbors, torch.from_numpy(x[:5]))
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
        if self.init_points is not None:
            checks.tensor("init_points", self.init_points)
        checks.integer("init_trials", self.init_trials, at_least=1)
        checks.integer("batch_size", self.batch_size, at_least=1)
        checks.integer("seed", self.seed)
        checks.boolean("progress", self.progress)

    def _search(self, problem: Problem) -> Nearest:
        init_points = self._checked_init_points(problem)
        nearest = self._empty_record(problem)
        if problem.statistics.best_so_far is not None:
            problem.statistics.best_so_far = nearest  # the search writes to it
        at = problem.evaluate_clean(nearest)
        search = _Search(self, problem, nearest)
        rows = search.find_starting_points((~at.success).nonzero().flatten(), init_points)
        search.walk(rows)
        return nearest

    def _total_steps(self, problem: Problem) -> int:
        return self.max_queries

    def _empty_record(self, problem: Problem) -> Nearest:
        return Nearest.empty(problem.x)

    def _verify(self, problem: Problem, found: Best | Nearest) -> Best:
        verified = super()._verify(problem, found)
        success = per_sample(verified.success, verified.x_adv)
        # a failure returns the clean input, which is known not to be a success
        return Best(torch.where(success, verified.x_adv, problem.x), verified.violation)

    def _checked_init_points(self, problem: Problem) -> Tensor | None:
        if self.init_points is None:
            return None
        features = problem.x.shape[1:]
        if self.init_points.shape[1:] != features or not len(self.init_points):
            raise ValueError(
                f"`init_points` must have shape (m, {', '.join(map(str, features))}) like the "
                f"samples of `x`, got {tuple(self.init_points.shape)}."
            )
        return checks.inputs("init_points", self.init_points, problem.model.bounds).to(problem.x)


class _Search:
    """State of one run: the remaining queries and the nearest successes.

    Samples are identified by their rows in the batch.
    """

    def __init__(self, attack: HopSkipJump, problem: Problem, nearest: Nearest) -> None:
        self.attack = attack
        self.problem = problem
        self.nearest = nearest
        self.keys = sample_keys(problem.x, problem.model.bounds, attack.seed)

    @property
    def remaining(self) -> Tensor:
        """Remaining queries of each sample, `(n,)`, without the one for the verification."""
        return self.attack.max_queries - 1 - self.problem.statistics.forward

    def query(self, x_adv: Tensor, rows: Tensor) -> Tensor:
        """Return a mask `(m,)` of the successes in `x_adv`, iterates of the samples `rows`."""
        before = int(self.problem.statistics.forward.max())
        size = self.attack.batch_size
        parts = [slice(i, i + size) for i in range(0, len(rows), size)]
        success = torch.cat([self.problem.reaches_goal(x_adv[part], rows[part]) for part in parts])
        self.problem.statistics.advance(int(self.problem.statistics.forward.max()) - before)
        return success

    def record(self, x_adv: Tensor, rows: Tensor) -> None:
        """Record the successes `x_adv` of the samples `rows` that are nearer than before."""
        part = self.problem.select(rows)
        new = Nearest(
            x_adv, x_adv.new_full((len(rows),), -1), at_least_float32(part.distance(x_adv))
        )
        update_rows(self.nearest, rows, select(self.nearest, rows).nearer(new))

    def find_starting_points(self, rows: Tensor, init_points: Tensor | None) -> Tensor:
        """Find a first success on the boundary for the samples `rows`.

        Returns:
            The rows that have one and enough queries to walk.
        """
        todo = rows
        for points in self._starting_points(init_points):
            todo = todo[self.remaining[todo] > 0]
            if not len(todo):
                break
            x_adv = points(todo)
            success = self.query(x_adv, todo)
            self.record(x_adv[success], todo[success])
            todo = todo[~success]
        started = self.nearest.success[rows]
        self.problem.statistics.no_start[rows[~started]] = True
        walking = rows[started & (self.remaining[rows] >= TUNING.bisections)]
        if len(walking):
            self._bisect_to_boundary(self.nearest.x_adv[walking], walking)
        return walking

    def _starting_points(self, init_points: Tensor | None) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yield functions from rows to the points that they try, one after another."""
        if init_points is None:
            yield from (partial(self._noise, i) for i in range(self.attack.init_trials))
            return
        x = at_least_float32(self.problem.x).flatten(1)
        order = torch.cdist(x, at_least_float32(init_points).flatten(1)).argsort(dim=1, stable=True)
        for column in order.unbind(1)[: self.attack.init_trials]:
            yield partial(_select_points, init_points, column)

    def _noise(self, i: int, rows: Tensor) -> Tensor:
        """Return the `i`-th sample of uniform noise over the bounds for each of `rows`."""
        x, (lower, upper) = self.problem.x, self.problem.model.bounds
        u = uniform(derived_keys(self.keys[rows], -1 - i), x[:1].numel(), x.dtype)
        return self.problem.clip(lower + (upper - lower) * u.view(-1, *x.shape[1:]))

    def walk(self, rows: Tensor) -> None:
        """Walk along the boundary from the successes of the samples `rows`, round by round."""
        normals = torch.zeros_like(at_least_float32(self.problem.x))
        min_queries = TUNING.min_probes + 1 + TUNING.bisections  # of a round with one step
        for i in range(1, self.attack.max_queries):
            rows = rows[self.remaining[rows] >= min_queries]
            if not len(rows):
                break
            x_adv = self.nearest.x_adv[rows]
            probes = int(self.attack.init_gradient_queries * math.sqrt(i))
            counts = self.remaining[rows] - 1 - TUNING.bisections
            counts = counts.clamp_max(max(probes, TUNING.min_probes))
            normal = self._normal(i, x_adv, rows, counts)
            normals[rows] = normalize(TUNING.normal_momentum * normals[rows] + normal, "l2")
            moved, success = self._step(i, x_adv, normals[rows], rows)
            self._bisect_to_boundary(moved[success], rows[success])

    def _normal(self, i: int, x_adv: Tensor, rows: Tensor, counts: Tensor) -> Tensor:
        """Estimate the boundary's normal at `x_adv`, towards success, by `counts` `(k,)` probes.

        It is the mean direction of the probes, weighted by success minus the mean success, which
        reduces the variance (eq. 16 of the paper).
        """
        d = x_adv[:1].numel()
        delta = at_least_float32(x_adv - self.problem.x[rows])
        radius = lp_norm(delta, "l2") * math.sqrt(d) * 2.0**-TUNING.bisections
        owner = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)
        number = torch.arange(len(owner), device=rows.device) - (counts.cumsum(0) - counts)[owner]
        successes, total = delta.new_zeros(len(rows)), delta.new_zeros(2, len(rows), d)
        size = self.attack.batch_size
        for first in range(0, len(owner), size):
            at, k = owner[first : first + size], number[first : first + size]
            keys = derived_keys(self.keys[rows[at]], i) + k * _KEY_STRIDE
            unit = normalize(normal(keys, d, x_adv.dtype), "l2")
            points = self.problem.clip(
                x_adv[at] + (radius[at, None] * unit).view(-1, *x_adv.shape[1:])
            )
            moved = at_least_float32(points - x_adv[at]).flatten(1)  # shorter where it was clipped
            success = self.query(points, rows[at]).to(delta.dtype)
            successes.index_add_(0, at, success)
            total.index_add_(1, at, torch.stack([success[:, None] * moved, moved]))
        normal_sum = total[0] - (successes / counts)[:, None] * total[1]
        return normalize(normal_sum.view_as(delta), "l2")

    def _step(self, i: int, x_adv: Tensor, normal: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Step away from the boundary along the normal, with a length that is halved on failure.

        Returns:
            The points, and a mask of those that are successes.
        """
        direction = normal.sign() if self.attack.norm == "linf" else normal
        length = self.problem.select(rows).distance(x_adv) / math.sqrt(i)
        moved, success = x_adv.clone(), torch.zeros_like(rows, dtype=torch.bool)
        for _ in range(TUNING.step_trials):
            todo = (~success & (self.remaining[rows] > TUNING.bisections)).nonzero().flatten()
            if not len(todo):
                break
            step_sizes = per_sample(length[todo].to(direction.dtype), direction)
            stepped = at_least_float32(x_adv[todo]) + step_sizes * direction[todo]
            points = self.problem.clip(stepped)
            reached = self.query(points, rows[todo])
            moved[todo[reached]], success[todo[reached]] = points[reached], True
            length = length / 2
        return moved, success

    def _bisect_to_boundary(self, x_adv: Tensor, rows: Tensor) -> None:
        """Move successes `x_adv` towards the inputs of `rows`, up to the boundary, by bisection."""
        if not len(rows):
            return
        part = self.problem.select(rows)
        distance, delta = part.distance(x_adv), x_adv - part.x
        inner, outer, best = torch.zeros_like(distance), torch.ones_like(distance), x_adv
        for _ in range(TUNING.bisections):
            middle = (inner + outer) / 2
            if self.attack.norm == "linf":
                radius = per_sample(middle * distance, delta)
                nearer = torch.maximum(torch.minimum(delta, radius), -radius)
            else:
                nearer = per_sample(middle, delta) * delta
            points = part.clip(part.x + nearer)
            success = self.query(points, rows)
            best = torch.where(per_sample(success, points), points, best)
            inner, outer = torch.where(success, inner, middle), torch.where(success, middle, outer)
        self.record(best, rows)


def _select_points(init_points: Tensor, order: Tensor, rows: Tensor) -> Tensor:
    """Return the entry of `init_points` that `order` `(n,)` has for each of `rows`."""
    return init_points[order[rows]]
