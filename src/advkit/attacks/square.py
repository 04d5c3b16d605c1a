"""Square attack: random search over boxes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.black_box import BlackBoxAttack, ByScores, by_scores
from advkit.attacks.engine.loop import Stop
from advkit.attacks.engine.problem import Problem
from advkit.attacks.engine.records import Best
from advkit.attacks.engine.rounding import warn_of_lost_budget
from advkit.attacks.engine.rows import select, update_rows
from advkit.core import checks
from advkit.core.norms import Norm, lp_norm, normalize, per_sample
from advkit.core.randomness import derived_keys, sample_keys, uniform
from advkit.core.tensors import at_least_float32

# Until which share of the queries a box has which part of the first one; 1/512 from there on.
_SHRINK = ((0.001, 1), (0.005, 2), (0.02, 4), (0.05, 8), (0.1, 16), (0.2, 32), (0.4, 64),
           (0.6, 128), (0.8, 256))  # fmt: skip
_P_INIT: dict[Norm, float] = {"linf": 0.5, "l2": 1.0}  # of the first box
_GREY = 0.5  # share of the boxes in which all channels get the same sign
_TILES = 5  # of the first l2 perturbation, along each axis
_LEAST = 3  # side of a window in l2


@dataclass(frozen=True, kw_only=True, repr=False)
class Square(BlackBoxAttack):
    """Square attack (Andriushchenko et al., 2020, arXiv:1912.00049): random search over scores.

    Each query changes the perturbation in one random box of features and keeps the change unless
    the margin of the scores gets worse. In linf the box gets a random sign for each channel; in l2
    a window's share of the length is moved to another one. The boxes shrink over the queries. The
    model is asked for logits where it has them, as the paper does, and for scores otherwise.

    Inputs are `(n, channels, *space)`, or tables `(n, features)`, of any number of axes; on tables
    and sequences a box is a run of neighbours.

    Deviations: in linf up to three first patterns are tried instead of one, noise of grey pixels
    and grey stripes along either axis; half of the boxes have the same sign in all channels; a box
    that would change nothing gets the opposite signs. The first box has half of the features in
    linf and all of them in l2, the authors' 0.8 or less. On ResNet-20 in linf that takes less than
    half of the queries. Ties are accepted: the scores of trees and neighbours are flat nearly
    everywhere. Targeted, it is the margin that is climbed, not the cross-entropy.

    Args:
        eps: radius of the ball, in input units, not negative; a float, or `(n,)` with one radius
            for each sample.
        norm: `"linf"` or `"l2"`.
        max_queries: the most samples that may be sent for each input, the first and the last look
            included; at least 3.
        p_init: share of the features that the first box covers (p in the paper), in (0, 1]; `None` for
            0.5 in linf and 1 in l2.
        stop: `"first"` leaves a sample alone once it is misclassified, `"never"` goes on to the
            strongest example that the queries allow; `None` leaves it to the caller: `"first"` by
            itself and in an evaluation.
        seed: of all draws, an int; they do not depend on the rest of the batch.
        progress: show a bar (needs the extra `report`).

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
        checks.one_of("norm", self.norm, ("linf", "l2"))
        checks.integer("max_queries", self.max_queries, at_least=3)
        if self.p_init is not None:
            checks.positive("p_init", self.p_init)
            if self.p_init > 1:
                raise ValueError(f"`p_init` must be at most 1, got {self.p_init}")
        checks.one_of("stop", self.stop, ("first", "never", None))
        checks.integer("seed", self.seed)
        checks.boolean("progress", self.progress)

    def _adapt_model(self, model: object) -> ByScores:
        return by_scores(model, type(self).__name__)

    def _search(self, problem: Problem) -> Best:
        eps = checks.radii(self.eps, problem.x)
        warn_of_lost_budget(problem, eps)
        keys = sample_keys(problem.x, problem.model.bounds, self.seed)
        change = _linf_change if self.norm == "linf" else _l2_change
        best = Best.unevaluated(
            problem.x
        )  # the first pattern is taken even if the input were better
        problem.evaluate_clean(best)
        rounds = (
            self.max_queries - int(problem.statistics.forward.max()) - 1
        )  # the last look is one too
        if rounds < 1:
            problem.statistics.no_start |= True
        open_rows = torch.arange(len(keys), device=keys.device)
        for i in range(rounds):
            if self.stop != "never":
                open_rows = open_rows[~best.success[open_rows]]
            if not len(open_rows):
                break
            part, found = problem.select(open_rows), select(best, open_rows)
            box = _Box(i, self._part(i), derived_keys(keys[open_rows], i))
            x_adv = part.round_into_ball(
                change(part, found.x_adv, eps[open_rows], box), eps[open_rows]
            )
            at = part.forward(x_adv, differentiate=False)
            better = at.violation <= found.violation
            update_rows(best, open_rows[better], select(Best(x_adv, at.violation), better))
            problem.statistics.advance(1)
        return best

    def _total_steps(self, problem: Problem) -> int:
        return self.max_queries

    def _part(self, i: int) -> float:
        """The share of the features that the box of round `i` covers."""
        smaller = next((times for until, times in _SHRINK if i <= until * self.max_queries), 512)
        return (_P_INIT[self.norm] if self.p_init is None else self.p_init) / smaller


class _Box(NamedTuple):
    """What one round draws for `n` samples."""

    round: int
    part: float  # of the features that it covers
    keys: Tensor  # (n,)


class _Space(NamedTuple):
    """The features of a sample as channels and the axes of a space."""

    channels: int
    sides: tuple[int, ...]

    @staticmethod
    def of(x: Tensor) -> _Space:
        """`(n, channels, *space)`; a table `(n, features)` has one channel and one axis."""
        return _Space(1, x.shape[1:]) if x.ndim == 2 else _Space(x.shape[1], x.shape[2:])

    def box(self, part: float, least: int = 1) -> tuple[int, ...]:
        """Sides of a box of the space's own shape that covers a `part` of it."""
        share = part ** (1 / len(self.sides))
        return tuple(max(min(least, side), round(share * side)) for side in self.sides)

    def window(self, u: Tensor, box: tuple[int, ...]) -> Tensor:
        """Where the features of a box at a random place stand among those of a channel.

        Args:
            u: numbers in [0, 1), `(n, axes)`.
            box: its sides.

        Returns:
            int64 `(n, features of the box)`.
        """
        room = torch.tensor([s - b + 1 for s, b in zip(self.sides, box, strict=True)])
        corner = (u.double() * room.to(u.device)).long()
        strides, inner = _places(self.sides, box)
        return (corner * strides.to(u.device)).sum(1, keepdim=True) + inner.to(u.device)


@lru_cache
def _places(sides: tuple[int, ...], box: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """How far apart neighbours along each axis stand, and where the features of a box do."""
    strides = torch.tensor([math.prod(sides[j + 1 :]) for j in range(len(box))])
    axes = torch.meshgrid(*(torch.arange(b) for b in box), indexing="ij")
    return strides, (torch.stack(axes, -1).flatten(0, -2) * strides).sum(1)


def _signs(u: Tensor) -> Tensor:
    """-1 or 1 for each number in [0, 1)."""
    return torch.where(u < 0.5, -1, 1)


def _linf_change(problem: Problem, x_adv: Tensor, eps: Tensor, box: _Box) -> Tensor:
    """`x_adv` with one box of features moved to a side of the ball, or a first pattern."""
    space = _Space.of(problem.x)
    starts = _starts(space)
    if box.round < len(starts):
        return _pattern(problem, eps, box.keys, starts[box.round])
    c, axes = space.channels, len(space.sides)
    u = uniform(box.keys, axes + 1 + c, torch.float32)
    place, grey, signs = u[:, :axes], u[:, axes, None] < _GREY, _signs(u[:, axes + 1 :])
    signs = torch.where(grey, signs[:, :1], signs)[:, :, None]  # (n, channels, 1)
    at = space.window(place, space.box(box.part))[:, None].expand(-1, c, -1)
    clean, old = (v.reshape(len(v), c, -1) for v in (problem.x, x_adv))
    centre, before = clean.gather(2, at), old.gather(2, at)
    step = signs * eps[:, None, None]
    moved, opposite = (problem.clip(centre + s) for s in (step, -step))
    same = (moved == before).flatten(1).all(1)[:, None, None]
    changed = old.scatter(2, at, torch.where(same, opposite, moved))
    return problem.match_memory_format(changed.view_as(problem.x))


def _starts(space: _Space) -> list[tuple[bool, ...]]:
    """The first patterns: along which axes each of them varies.

    On nets that were not trained against it noise of single grey pixels often suffices; stripes
    are what the paper begins with.
    """
    noise = (True,) * len(space.sides)
    last = (False,) * (len(noise) - 1)
    stripes = [(*last, True), (*(not varies for varies in last), False)]
    return [noise, *stripes] if last else [noise]


def _pattern(problem: Problem, eps: Tensor, keys: Tensor, varies: tuple[bool, ...]) -> Tensor:
    """Random signs along the axes that vary, the same for all channels."""
    space = _Space.of(problem.x)
    shape = [side if v else 1 for side, v in zip(space.sides, varies, strict=True)]
    signs = _signs(uniform(keys, math.prod(shape), torch.float32)).view(-1, 1, *shape)
    signs = signs.expand(-1, space.channels, *space.sides).reshape(problem.x.shape)
    return problem.clip(problem.x + per_sample(eps, problem.x) * signs)


def _l2_change(problem: Problem, x_adv: Tensor, eps: Tensor, box: _Box) -> Tensor:
    """`x_adv` with the length of one window moved into another one, or a first pattern."""
    space = _Space.of(problem.x)
    delta = at_least_float32(x_adv - problem.x).reshape(len(x_adv), space.channels, -1)
    changed = _tiles(space, delta, box) if box.round == 0 else _moved(space, delta, eps, box)
    unit = normalize(changed, "l2").view_as(problem.x)
    return problem.clip(problem.x + unit * per_sample(eps, unit))


def _tiles(space: _Space, delta: Tensor, box: _Box) -> Tensor:
    """A bump of random sign in each tile of a grid and each channel, `(n, channels, features)`."""
    sides = tuple(max(1, side // _TILES) for side in space.sides)
    counts = [side // tile for side, tile in zip(space.sides, sides, strict=True)]
    size = (space.channels, *counts)
    signs = _signs(uniform(box.keys, math.prod(size), torch.float32)).view(-1, *size)
    shape = _bump(sides).to(delta)
    tiles = torch.zeros(len(delta), space.channels, *space.sides, device=delta.device).to(delta)
    grid = [slice(n * tile) for n, tile in zip(counts, sides, strict=True)]
    for axis, tile in enumerate(sides):
        signs = signs.repeat_interleave(tile, dim=2 + axis)
    covered = (slice(None), slice(None), *grid)
    tiles[covered] = signs * shape.repeat(counts)
    return tiles.flatten(2)


def _moved(space: _Space, delta: Tensor, eps: Tensor, box: _Box) -> Tensor:
    """Algorithm 3 of the paper on `delta` `(n, channels, features)`."""
    c, axes = space.channels, len(space.sides)
    u = uniform(box.keys, 2 * axes + 1 + c, torch.float32)
    # odd where there is room, so that a bump has a centre
    even = space.box(box.part, _LEAST)
    sides = tuple(min(b + 1 - b % 2, side) for b, side in zip(even, space.sides, strict=True))
    into, out = (
        space.window(v, sides)[:, None].expand(-1, c, -1)
        for v in (u[:, :axes], u[:, axes : 2 * axes])
    )
    fresh = _split_bumps(sides).to(delta)[(u[:, 2 * axes] * axes).long()]  # (n, window)
    fresh = _signs(u[:, 2 * axes + 1 :])[:, :, None] * fresh[:, None]
    old = delta.gather(2, into)
    emptied = delta.scatter(2, out, 0).scatter(2, into, 0)
    most = at_least_float32(eps).square().clamp_max(torch.finfo(delta.dtype).max)
    unused = (most - delta.square().sum((1, 2))).clamp_min(0)[:, None, None] / c
    length = (delta.square().sum(2) - emptied.square().sum(2)).clamp_min(0)[:, :, None] + unused
    new = fresh + _unit(old)
    return emptied.scatter(2, into, _unit(new) * length.sqrt())


def _unit(v: Tensor) -> Tensor:
    """Each channel of `(n, channels, features)` at length 1; zero stays zero."""
    return normalize(v.flatten(0, 1), "l2").view_as(v)


@lru_cache
def _split_bumps(sides: tuple[int, ...]) -> Tensor:
    """A bump and a negative one side by side along each axis, `(axes, features)`, of length 1."""
    found = []
    for axis, side in enumerate(sides):
        halves = [
            _bump((*sides[:axis], part, *sides[axis + 1 :]))
            for part in (side // 2, side - side // 2)
        ]
        whole = torch.cat([halves[0], -halves[1]], dim=axis).flatten()
        found.append(whole / lp_norm(whole[None], "l2"))
    return torch.stack(found)


def _bump(sides: tuple[int, ...]) -> Tensor:
    """Pyramid of inverse squares around the centre of a box (eq. 2 of the paper)."""
    off = [(torch.arange(side) - side // 2).abs() for side in sides]
    ring = torch.stack(torch.meshgrid(*off, indexing="ij")).amax(0)
    steps = 1 / torch.arange(1, max(side // 2 for side in sides) + 2).square()
    return steps.flip(0).cumsum(0).flip(0)[ring]
