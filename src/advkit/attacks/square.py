"""Square attack: random search over boxes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.black_box import BlackBoxAttack, ByScores, by_scores
from advkit.attacks.engine.loop import Stop
from advkit.attacks.engine.problem import Problem
from advkit.attacks.engine.records import Best
from advkit.attacks.engine.rounding import warn_of_lost_budget
from advkit.attacks.engine.rows import select, update_rows
from advkit.attacks.engine.windows import Space, bump, split_bumps
from advkit.core import checks
from advkit.core.box_projections import project_onto_l1_ball_and_box
from advkit.core.norms import ORDER, Norm, normalize, per_sample
from advkit.core.randomness import derived_keys, sample_keys, uniform
from advkit.core.tensors import at_least_float32


@dataclass(frozen=True)
class Tuning:
    """Constants of the search.

    Those that differ from the paper were chosen on ResNet-20 in linf, and on two robust nets in l1.
    """

    # (share of the queries, divisor of p_init up to there); from the paper, for 10,000 queries
    schedule: tuple[tuple[float, int], ...] = (
        (0.001, 1),
        (0.005, 2),
        (0.02, 4),
        (0.05, 8),
        (0.1, 16),
        (0.2, 32),
        (0.4, 64),
        (0.6, 128),
        (0.8, 256),
    )
    last_divisor: int = 512  # of p_init, after the schedule
    p_init_linf: float = 0.5  # share of the features in the first box; at most 0.8 in the paper
    p_init_l2: float = 1.0
    p_init_l1: float = 1.0
    gray_fraction: float = 0.5  # of the linf boxes in which all channels get the same sign
    tiles_per_axis: int = 5  # of the first l2 or l1 perturbation, from the paper
    min_window_side: int = 3  # in l2 and l1, from the paper
    l1_stretch: float = 3.0  # times the channels: growth of the new l1 window, then projected


TUNING = Tuning()
AFTER_PATTERNS = 3  # the round that follows the initial patterns
_P_INIT = {"linf": TUNING.p_init_linf, "l2": TUNING.p_init_l2, "l1": TUNING.p_init_l1}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Square(BlackBoxAttack):
    """Square attack (Andriushchenko et al., 2020, arXiv:1912.00049): random search over scores.

    Each query changes the perturbation in one random box of features and keeps the change unless
    the margin of the scores gets worse. In linf the box gets a random sign for each channel. In l2
    and l1 a part of the perturbation's length moves from one window to another. The boxes shrink
    over the queries. The l1 step is that of AutoAttack (Croce and Hein, 2021, arXiv:2103.01208),
    which projects onto the ball and the bounds at once. The attack uses the logits of a model that
    has them, as the paper does, and its scores otherwise.

    Inputs are `(n, channels, *space)` with any number of axes, or tables `(n, features)`. On tables
    and sequences a box is a run of adjacent features.

    Deviations from the paper:

    - In linf up to three initial patterns are tried instead of one: noise of gray pixels, and gray
      stripes along either axis.
    - Half of the linf boxes have the same sign in all channels.
    - A box that would change nothing gets the opposite signs.
    - The first box has half of the features in linf and all of them in l2 and l1; the authors use
      0.8 or less. With these changes, ResNet-20 in linf takes less than half of the queries.
    - In l1 a window gets three times the length of a channel for each channel of the sample. The
      projection leaves its peaks, and few large changes are the strongest ones in l1. AutoAttack
      has no factor of three, and gives each channel the length of all channels.
    - Ties are accepted, since the scores of trees and nearest neighbors are flat nearly everywhere.
    - A targeted attack maximizes the margin, not minus the cross-entropy.

    Args:
        eps: radius of the ball, in input units, not negative; a float, or `(n,)` with one radius
            for each sample.
        norm: `"linf"`, `"l2"` or `"l1"`.
        max_queries: greatest number of queries for each input, at least 3; the evaluation of the
            clean input and the final verification count.
        p_init: share of the features that the first box covers (p in the paper), in (0, 1]; `None`
            takes 0.5 in linf and 1 in l2 and l1.
        stop: `"first"` ends at the first misclassification of a sample, `"never"` continues to the
            strongest example that the queries allow. `None` lets the caller choose; a direct call
            and an evaluation choose `"first"`.
        seed: seed of all random draws, an int; they do not depend on the rest of the batch.
        progress: show a progress bar (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.

    Example:
        >>> import numpy as np, torch
        >>> from sklearn.tree import DecisionTreeClassifier
        >>> from advkit import attacks
        >>> x = np.random.default_rng(0).random((80, 4))
        >>> tree = DecisionTreeClassifier().fit(x, x[:, 0] > 0.5)
        >>> result = attacks.Square(eps=0.6, max_queries=200).run(tree, torch.from_numpy(x[:5]))
        >>> bool(result.success.all()), int(result.queries.forward.max()) <= 200
        (True, True)
    """

    eps: float | Tensor
    norm: Norm = "linf"
    max_queries: int = 1000
    p_init: float | None = None
    stop: Stop | None = None
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        checks.eps(self.eps)
        checks.one_of("norm", self.norm, ("linf", "l2", "l1"))
        checks.integer("max_queries", self.max_queries, at_least=3)
        if self.p_init is not None:
            checks.positive("p_init", self.p_init)
            if self.p_init > 1:
                raise ValueError(f"`p_init` must be at most 1, got {self.p_init}.")
        checks.one_of("stop", self.stop, ("first", "never", None))
        checks.integer("seed", self.seed)
        checks.boolean("progress", self.progress)

    def _adapt_model(self, model: object) -> ByScores:
        return by_scores(model, type(self).__name__)

    def _search(self, problem: Problem) -> Best:
        eps = checks.radii(self.eps, problem.x)
        warn_of_lost_budget(problem, eps)
        keys = sample_keys(problem.x, problem.model.bounds, self.seed)
        change = _linf_change if self.norm == "linf" else partial(_window_change, self.norm)
        best = self._first_iterates(problem, eps)
        # one query is left for the verification
        rounds = self.max_queries - int(problem.statistics.forward.max()) - 1
        if rounds < 1:
            problem.statistics.no_start |= True
        open_rows = torch.arange(len(keys), device=keys.device)
        for i in range(rounds):
            if self.stop != "never":
                open_rows = open_rows[~best.success[open_rows]]
            if not len(open_rows):
                break
            part, current = problem.select(open_rows), select(best, open_rows)
            box = _Box(self._round(i), self._coverage(i), derived_keys(keys[open_rows], i))
            x_adv = part.round_into_ball(
                change(part, current.x_adv, eps[open_rows], box), eps[open_rows]
            )
            at = part.forward(x_adv, differentiate=False)
            better = at.violation <= current.violation
            update_rows(best, open_rows[better], select(Best(x_adv, at.violation), better))
            problem.statistics.advance(1)
        return best

    def _total_steps(self, problem: Problem) -> int:
        return self.max_queries

    def _first_iterates(self, problem: Problem, eps: Tensor) -> Best:
        """Return the iterates at which the search begins: the clean inputs, evaluated.

        The first pattern replaces those that are not successes, even where it is worse.
        """
        best = Best.unevaluated(problem.x)
        problem.evaluate_clean(best)
        return best

    def _round(self, i: int) -> int:
        """Return the round of query `i`; the first rounds try initial patterns."""
        return i

    def _coverage(self, i: int) -> float:
        """Return the share of the features that the box of round `i` covers."""
        divisors = (divisor for until, divisor in TUNING.schedule if i <= until * self.max_queries)
        p_init = _P_INIT[self.norm] if self.p_init is None else self.p_init
        return p_init / next(divisors, TUNING.last_divisor)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SquareFrom(Square):
    """Square attack that begins at given iterates, with boxes of one size.

    Args:
        start: iterates `(n, *features)`, such as those of another attack; projected onto the ball.
        p_init: share of the features that each box covers.
        **others: the arguments of `Square`.
    """

    start: Tensor
    p_init: float = 0.02

    def _first_iterates(self, problem: Problem, eps: Tensor) -> Best:
        at = problem.forward(problem.project_to_ball(self.start.clone(), eps), differentiate=False)
        return Best(at.x_adv, at.violation)

    def _round(self, i: int) -> int:
        return i + AFTER_PATTERNS

    def _coverage(self, i: int) -> float:
        return self.p_init


class _Box(NamedTuple):
    """Random box of one round for `n` samples."""

    round: int
    coverage: float  # share of the features
    keys: Tensor  # (n,), of the random draws


def _signs(u: Tensor) -> Tensor:
    """Return -1 or 1 for each number in [0, 1)."""
    return torch.where(u < 0.5, -1, 1)


def _linf_change(problem: Problem, x_adv: Tensor, eps: Tensor, box: _Box) -> Tensor:
    """Return `x_adv` with one box of features at a face of the ball, or an initial pattern."""
    space = Space.of(problem.x)
    patterns = _initial_patterns(space)
    if box.round < len(patterns):
        return _pattern(problem, eps, box.keys, patterns[box.round])
    c, axes = space.channels, len(space.sides)
    u = uniform(box.keys, axes + 1 + c, torch.float32)
    position, signs = u[:, :axes], _signs(u[:, axes + 1 :])
    gray = u[:, axes, None] < TUNING.gray_fraction
    signs = torch.where(gray, signs[:, :1], signs)[:, :, None]  # (n, channels, 1)
    at = space.window(position, space.box(box.coverage))[:, None].expand(-1, c, -1)
    clean, old = (v.reshape(len(v), c, -1) for v in (problem.x, x_adv))
    center, before = clean.gather(2, at), old.gather(2, at)
    step = signs * eps[:, None, None]
    moved, opposite = (problem.clip(center + s) for s in (step, -step))
    same = (moved == before).flatten(1).all(1)[:, None, None]
    changed = old.scatter(2, at, torch.where(same, opposite, moved))
    return problem.match_memory_format(changed.view_as(problem.x))


def _initial_patterns(space: Space) -> list[tuple[bool, ...]]:
    """Return the initial patterns, each as a mask of the axes along which it varies.

    Noise of single gray pixels is often enough for nets without adversarial training. The paper
    begins with stripes.
    """
    noise = (True,) * len(space.sides)
    last = (False,) * (len(noise) - 1)
    stripes = [(*last, True), (*(not varies for varies in last), False)]
    return [noise, *stripes] if last else [noise]


def _pattern(problem: Problem, eps: Tensor, keys: Tensor, varies: tuple[bool, ...]) -> Tensor:
    """Return a pattern of random signs along the axes that vary, the same for all channels."""
    space = Space.of(problem.x)
    shape = [side if v else 1 for side, v in zip(space.sides, varies, strict=True)]
    signs = _signs(uniform(keys, math.prod(shape), torch.float32)).view(-1, 1, *shape)
    signs = signs.expand(-1, space.channels, *space.sides).reshape(problem.x.shape)
    return problem.clip(problem.x + per_sample(eps, problem.x) * signs)


def _window_change(norm: Norm, problem: Problem, x_adv: Tensor, eps: Tensor, box: _Box) -> Tensor:
    """Return `x_adv` with length moved from one window to another, or the initial pattern.

    In l1 the new part is longer than the ball, so that the projection keeps its peaks alone.
    """
    space, eps = Space.of(problem.x), at_least_float32(eps)
    stretch = TUNING.l1_stretch * space.channels if norm == "l1" else 1.0
    delta = at_least_float32(x_adv - problem.x).reshape(len(x_adv), space.channels, -1)
    if box.round == 0:
        length = (stretch * eps).clamp_max(torch.finfo(eps.dtype).max)
        changed = normalize(_tiles(space, delta, box), norm) * length[:, None, None]
    else:
        changed = _move_length(norm, space, delta, eps, box, stretch)
    changed = changed.view_as(problem.x)
    if norm == "l1":
        changed = project_onto_l1_ball_and_box(changed, problem.x, eps, problem.model.bounds)
    else:
        changed = normalize(changed, norm) * per_sample(eps, changed)
    return problem.clip(problem.x + changed)


def _tiles(space: Space, delta: Tensor, box: _Box) -> Tensor:
    """Return bumps of random sign, one for each tile and channel, `(n, channels, features)`."""
    sides = tuple(max(1, side // TUNING.tiles_per_axis) for side in space.sides)
    counts = [side // tile for side, tile in zip(space.sides, sides, strict=True)]
    size = (space.channels, *counts)
    signs = _signs(uniform(box.keys, math.prod(size), torch.float32)).view(-1, *size)
    shape = bump(sides).to(delta)
    tiles = torch.zeros(len(delta), space.channels, *space.sides, device=delta.device).to(delta)
    grid = [slice(n * tile) for n, tile in zip(counts, sides, strict=True)]
    for axis, tile in enumerate(sides):
        signs = signs.repeat_interleave(tile, dim=2 + axis)
    covered = (slice(None), slice(None), *grid)
    tiles[covered] = signs * shape.repeat(counts)
    return tiles.flatten(2)


def _move_length(
    norm: Norm, space: Space, delta: Tensor, eps: Tensor, box: _Box, stretch: float = 1.0
) -> Tensor:
    """Return `delta` after a step of algorithm 3 of the paper.

    Args:
        norm: norm of the lengths, `"l2"` or `"l1"`.
        space: layout of the features.
        delta: perturbations, `(n, channels, features)`.
        eps: radius of each ball, `(n,)`, in the dtype of `delta`.
        box: random numbers and coverage of the windows.
        stretch: factor of the power of the length that the target window gets.

    Returns:
        `(n, channels, features)`.
    """
    c, axes = space.channels, len(space.sides)
    u = uniform(box.keys, 2 * axes + 1 + c, torch.float32)
    # odd sides where they fit, so that a bump has a center
    approximate = space.box(box.coverage, TUNING.min_window_side)
    pairs = zip(approximate, space.sides, strict=True)
    sides = tuple(min(b + 1 - b % 2, side) for b, side in pairs)
    target, source = (
        space.window(v, sides)[:, None].expand(-1, c, -1)
        for v in (u[:, :axes], u[:, axes : 2 * axes])
    )
    split = split_bumps(sides, norm).to(delta)[(u[:, 2 * axes] * axes).long()]  # (n, window)
    signed = _signs(u[:, 2 * axes + 1 :])[:, :, None] * split[:, None]
    old = delta.gather(2, target)
    emptied = delta.scatter(2, source, 0).scatter(2, target, 0)
    power = ORDER[norm]
    sizes, others = delta.abs() ** power, emptied.abs() ** power
    freed = (sizes.sum(2) - others.sum(2)).clamp_min(0)  # (n, channels)
    unused = (eps**power - sizes.sum((1, 2))).clamp_min(0)[:, None] / c
    total = (stretch * (freed + unused)).clamp_max(torch.finfo(delta.dtype).max)
    new = _unit(norm, signed + _unit(norm, old))
    return emptied.scatter(2, target, new * total[:, :, None] ** (1 / power))


def _unit(norm: Norm, v: Tensor) -> Tensor:
    """Return each channel of `(n, channels, features)` at length 1; zero remains zero."""
    return normalize(v.flatten(0, 1), norm).view_as(v)
