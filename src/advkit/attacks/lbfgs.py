"""The first attack of all: L-BFGS in the box."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from advkit.attacks.engine.constant_search import PenaltyAttack, PenaltyState
from advkit.attacks.engine.loop import iterate
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Nearest
from advkit.core import checks
from advkit.core.losses import Loss, log_odds_loss
from advkit.core.norms import Norm
from advkit.core.tensors import at_least_float32

_AMPLE = 2.0  # the first constant, as a multiple of what a linear model would need
_ARMIJO = 1e-4  # share of the predicted decrease that a step must bring
_SHORTER, _MUCH_SHORTER = 0.5, 0.1  # bounds of the next trial after a step that did not
_SHORTEST = 1e-6  # share of a step below which there is no better point
_FLAT = 1e-5  # by which share a step must lower the objective
_STRAIGHT = 1e-10  # least curvature of a pair, against the square of the change of gradient


class _Curve(NamedTuple):
    """What each sample carries from trial to trial; points and distances in widths of the box."""

    const: Tensor  # (n,), weight of the loss
    point: Tensor  # (n, d), the last step that was taken
    value: Tensor  # (n,), objective there; inf before the first
    slope: Tensor  # (n, d), gradient there
    course: Tensor  # (n, d), direction of the step that is tried
    share: Tensor  # (n,), how much of it
    moves: Tensor  # (n, memory, d), differences of points
    turns: Tensor  # (n, memory, d), differences of gradients
    crossed: Tensor  # (n, memory, memory), products of each turn and the moves before it
    turned: Tensor  # (n, memory, memory), products turn . turn
    weight: Tensor  # (n, memory), 1 / (move . turn), 0 where there is no pair
    place: Tensor  # int64 (n,), where the next pair goes
    closed: Tensor  # bool (n,), converged


@dataclass(frozen=True, kw_only=True, repr=False)
class LBFGS(PenaltyAttack):
    """Box-constrained L-BFGS (Szegedy et al., 2014, arXiv:1312.6199), batched.

    Minimizes |x_adv - x|^2 + const * cross-entropy at the target over the box, with curvature
    pairs, line search and constant of each sample's own, and searches for the smallest constant
    that still succeeds. Without a target the cross-entropy is that between a rival and the label.

    The paper minimizes c |x_adv - x| + cross-entropy. For every c there is a const with the same
    minimizer, and the square is smooth at the input, where the search begins. Further deviations:
    the solver is a projected L-BFGS (features at a bound that the gradient pushes outwards are
    held, two loops over the last pairs for the rest, backtracking along the projected path) instead
    of L-BFGS-B with its generalized Cauchy point; the first search steps go for the likeliest
    classes one after another, where the paper draws a target; the success is moved towards the
    input as far as it stays one.

    Args:
        search_steps: values of the constant that are tried.
        steps: evaluations of objective and gradient for each, at most; each costs one forward and
            one backward pass. A sample that has converged leaves the batch.
        memory: curvature pairs of each sample; each costs two tensors of its size.
        initial_const: the first constant; `None` takes twice what a linear model would need.
        candidates: how many classes to go for, the likeliest first. Without meaning for a targeted
            attack.
        progress: show a bar (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.

    Example:
        >>> import torch
        >>> from advkit import attacks
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> bool(attacks.LBFGS().run(net, torch.rand(5, 1, 8, 8)).success.all())
        True
    """

    search_steps: int = 9
    steps: int = 20
    memory: int = 8
    norm: Norm = field(default="l2", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.integer("memory", self.memory, at_least=1)

    def _ascent_loss(self, *, targeted: bool) -> Loss:
        return log_odds_loss

    @property
    def _initial_factor(self) -> float:
        return _AMPLE * 4  # at the boundary the cross-entropy has half the slope of the logits

    def _descend(self, problem: Problem, start: Tensor, penalty: PenaltyState) -> Nearest:
        return iterate(
            problem,
            start,
            self._begin(problem, penalty.const),
            self._step,
            steps=self.steps,
            best=Nearest.empty(problem.x),
            finished=lambda _, curve: curve.closed,
        )

    def _begin(self, problem: Problem, const: Tensor) -> _Curve:
        flat = problem.x.flatten(1).to(const.dtype)
        zero, none = torch.zeros_like(flat), torch.zeros_like(const)
        pairs = flat.new_zeros(len(flat), self.memory, flat.shape[1])
        products = flat.new_zeros(len(flat), self.memory, self.memory)
        return _Curve(
            const=const,
            point=zero,
            value=torch.full_like(const, math.inf),
            slope=zero,
            course=zero,
            share=none,
            moves=pairs,
            turns=pairs.clone(),
            crossed=products,
            turned=products.clone(),
            weight=pairs[:, :, 0].clone(),
            place=none.long(),
            closed=none.bool(),
        )

    def _step(self, i: int, problem: Problem, at: Iterate, curve: _Curve) -> tuple[Tensor, _Curve]:
        lower, upper = problem.model.bounds
        tried = (at.x_adv.flatten(1).to(curve.point) - lower) / (upper - lower)
        value, slope = self._evaluate(problem, at, curve.const)
        move = tried - curve.point
        promised = _dot(curve.slope, move)
        taken = value <= curve.value + _ARMIJO * promised
        if i:
            curve = _remembered(curve, taken, move, slope - curve.slope)
        drop = curve.value - value
        shorter = curve.share * _shortened(promised, drop)
        closed = torch.where(taken, drop <= _FLAT * value, shorter < _SHORTEST)
        new = taken[:, None]
        point, slope = torch.where(new, tried, curve.point), torch.where(new, slope, curve.slope)
        curve = curve._replace(
            point=point,
            slope=slope,
            value=torch.where(taken, value, curve.value),
            share=torch.where(taken, 1, shorter),
            closed=closed,
        )
        course = torch.where(new, _course(curve), curve.course)
        aim = (point + curve.share[:, None] * course).clamp_(0, 1)
        x_adv = problem.clip((lower + (upper - lower) * aim).view_as(problem.x))
        return x_adv, curve._replace(course=course)

    def _evaluate(self, problem: Problem, at: Iterate, const: Tensor) -> tuple[Tensor, Tensor]:
        """The objective at the iterates, `(n,)`, and its gradient, `(n, d)`."""
        lower, upper = problem.model.bounds
        width = upper - lower
        delta = at_least_float32(at.x_adv - problem.x).flatten(1).div_(width)
        odds = at.value.detach().to(const.dtype)
        grad = at_least_float32(problem.ascent_direction(at).flatten(1))
        value = _dot(delta, delta) + const * softplus(-odds)
        weight = width * const * torch.sigmoid(-odds)
        return value, delta.mul_(2).addcmul_(weight[:, None], grad, value=-1)


def _shortened(promised: Tensor, drop: Tensor) -> Tensor:
    """By which factor to shorten a step: to the least value of the parabola through what is known.

    Args:
        promised: change of the objective by the slope, negative, `(n,)`.
        drop: what it fell by, `(n,)`.
    """
    factor = promised / (2 * (promised + drop))
    return factor.nan_to_num(_MUCH_SHORTER).clamp(_MUCH_SHORTER, _SHORTER)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


def _products(pairs: Tensor, v: Tensor) -> Tensor:
    """Each of `pairs` `(n, memory, d)` times `v` `(n, d)`: `(n, memory)`."""
    with torch.autocast(pairs.device.type, enabled=False):  # which is for the model alone
        return (pairs @ v[:, :, None]).squeeze(2)


def _sum(shares: Tensor, pairs: Tensor) -> Tensor:
    """The `shares` `(n, memory)` of `pairs` `(n, memory, d)` added up: `(n, d)`."""
    with torch.autocast(pairs.device.type, enabled=False):
        return (shares[:, None] @ pairs).squeeze(1)


def _remembered(curve: _Curve, taken: Tensor, move: Tensor, turn: Tensor) -> _Curve:
    """The curve with the pair of a step that was `taken` and met positive curvature."""
    curvature = _dot(move, turn)
    good = taken & (curvature > _STRAIGHT * _dot(turn, turn)) & (curvature > 0)
    rows = good.nonzero().flatten()
    place = curve.place[rows] % curve.weight.shape[1]
    curve.moves[rows, place] = move[rows]
    curve.turns[rows, place] = turn[rows]
    curve.weight[rows, place] = 1 / curvature[rows]
    curve.crossed[rows, place] = _products(curve.moves, turn)[rows]
    turned = _products(curve.turns, turn)[rows]
    curve.turned[rows, place] = turned
    curve.turned[rows, :, place] = turned
    return curve._replace(place=curve.place + good)


def _course(curve: _Curve) -> Tensor:
    """Where to go: minus the inverse curvature times the gradient, over the features not held."""
    point, slope = curve.point, curve.slope
    free = ~((point <= 0) & (slope > 0) | (point >= 1) & (slope < 0))
    q = slope * free
    stretch, turns, moves = _two_loops(curve, _products(curve.moves, q), _products(curve.turns, q))
    ahead = stretch * (q - _sum(turns, curve.turns)) + _sum(moves, curve.moves)
    course = -ahead * free
    downhill = _dot(course, slope) < 0
    return torch.where(downhill[:, None], course, -0.5 * q)


def _two_loops(curve: _Curve, moves_q: Tensor, turns_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two loops over the pairs (Nocedal, 1980) in the products of the vectors alone.

    The vectors themselves are read twice, before and after, whatever the number of pairs (Chen,
    Wang and Zhou, 2014, "Large-scale L-BFGS using MapReduce").

    Args:
        curve: with the pairs and their products.
        moves_q: products of the moves and the gradient `q`, `(n, memory)`.
        turns_q: products of the turns and `q`, `(n, memory)`.

    Returns:
        `stretch` `(n, 1)`, `turns` `(n, memory)` and `moves` `(n, memory)`, where the inverse
        curvature times `q` is stretch * (q - the sum of turns) + the sum of moves.
    """
    rows, memory = torch.arange(len(curve.place), device=curve.place.device), curve.weight.shape[1]
    order = [(curve.place - 1 - back) % memory for back in range(memory)]
    turns, moves = torch.zeros_like(turns_q), torch.zeros_like(moves_q)
    for place in order:  # from the newest pair to the oldest
        along = moves_q[rows, place] - _dot(turns, curve.crossed[rows, :, place])
        turns[rows, place] = curve.weight[rows, place] * along
    newest = order[0]
    weight, square = curve.weight[rows, newest], curve.turned[rows, newest, newest]
    stretch = 1 / (weight * square).clamp_min(1e-30)
    stretch = torch.where(weight > 0, stretch, 0.5)[:, None]  # |delta|^2 alone curves by 2
    turns_q = stretch * (turns_q - _products(curve.turned, turns))
    for place in reversed(order):
        along = turns_q[rows, place] + _dot(moves, curve.crossed[rows, place])
        moves[rows, place] = turns[rows, place] - curve.weight[rows, place] * along
    return stretch, turns, moves
