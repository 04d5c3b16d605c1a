"""Box-constrained L-BFGS attack."""

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


@dataclass(frozen=True)
class Tuning:
    """Constants of the solver."""

    initial_factor: float = 2.0  # first constant, as a multiple of what a linear model needs
    armijo: float = 1e-4  # share of the expected decrease that a step must bring (c1 of Armijo)
    max_shortening: float = 0.1  # a rejected step is shortened to this share of itself at least
    min_shortening: float = 0.5  # and to this share at most
    min_step_length: float = 1e-6  # no better point is expected from a shorter step
    min_decrease: float = 1e-5  # share of the objective that a step must bring to go on
    min_curvature: float = 1e-10  # s . y of a stored pair, against y . y


TUNING = Tuning()


class _SolverState(NamedTuple):
    """State of each sample from step to step; points and distances in widths of the box."""

    const: Tensor  # (n,), weight of the loss
    point: Tensor  # (n, d), the last accepted point
    value: Tensor  # (n,), objective there; inf before the first
    gradient: Tensor  # (n, d), of the objective there
    direction: Tensor  # (n, d), of the step that is tried
    step_length: Tensor  # (n,), along the direction
    s: Tensor  # (n, memory, d), differences of points
    y: Tensor  # (n, memory, d), differences of gradients
    sy: Tensor  # (n, memory, memory), [:, i, j] is y_i . s_j
    yy: Tensor  # (n, memory, memory), products of the y
    rho: Tensor  # (n, memory), 1 / (s . y), 0 where there is no pair
    place: Tensor  # int64 (n,), position of the next pair
    finished: Tensor  # bool (n,), converged


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LBFGS(PenaltyAttack):
    """Box-constrained L-BFGS (Szegedy et al., 2014, arXiv:1312.6199), batched.

    Minimizes |x_adv - x|^2 + const * cross-entropy at the target over the box, and searches for the
    smallest constant that still succeeds. Each sample has its own curvature pairs, line search and
    constant. Without a target the cross-entropy is that between a candidate class and the label.

    Use it to reproduce its paper. Where gradients at the input mislead, as on nets trained in linf,
    its distances are twice those of `MinimumNorm`.

    Deviations from the paper:

    - The distance is squared. The paper minimizes c |x_adv - x| + cross-entropy; for every c there
      is a const with the same minimizer, and the square is smooth at the input, where the search
      begins.
    - The solver is a projected L-BFGS instead of L-BFGS-B with its generalized Cauchy point.
      Features at a bound that the gradient pushes outward are fixed, the two-loop recursion runs
      over the others, and the line search backtracks along the projected path.
    - The first search steps aim at the likeliest classes one after another. The paper draws a
      target.
    - A success is moved towards the input as far as it remains a success.

    Args:
        search_steps: number of constants that are tried.
        steps: greatest number of evaluations of objective and gradient for each constant; each
            costs one forward and one backward pass. A converged sample leaves the batch.
        memory: curvature pairs of each sample; each pair takes the memory of two samples.
        initial_const: first constant; `None` takes twice what a linear model needs.
        candidates: greatest number of classes to aim at, the likeliest first. A targeted attack
            ignores it.
        progress: show a progress bar (needs the extra `report`).

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
        # at the boundary the cross-entropy has half the slope of the logits
        return TUNING.initial_factor * 4

    def _descend(self, problem: Problem, start: Tensor, penalty: PenaltyState) -> Nearest:
        return iterate(
            problem,
            start,
            self._initial_state(problem, penalty.const),
            self._step,
            steps=self.steps,
            best=Nearest.empty(problem.x),
            finished=lambda _, state: state.finished,
        )

    def _initial_state(self, problem: Problem, const: Tensor) -> _SolverState:
        flat = problem.x.flatten(1).to(const.dtype)
        zero, none = torch.zeros_like(flat), torch.zeros_like(const)
        pairs = flat.new_zeros(len(flat), self.memory, flat.shape[1])
        products = flat.new_zeros(len(flat), self.memory, self.memory)
        return _SolverState(
            const=const,
            point=zero,
            value=torch.full_like(const, math.inf),
            gradient=zero,
            direction=zero,
            step_length=none,
            s=pairs,
            y=pairs.clone(),
            sy=products,
            yy=products.clone(),
            rho=pairs[:, :, 0].clone(),
            place=none.long(),
            finished=none.bool(),
        )

    def _step(
        self, i: int, problem: Problem, at: Iterate, state: _SolverState
    ) -> tuple[Tensor, _SolverState]:
        lower, upper = problem.model.bounds
        trial = (at.x_adv.flatten(1).to(state.point) - lower) / (upper - lower)
        value, gradient = self._evaluate(problem, at, state.const)
        s = trial - state.point
        expected_decrease = _dot(state.gradient, s)
        accepted = value <= state.value + TUNING.armijo * expected_decrease
        if i:
            state = _with_pair(state, accepted, s, gradient - state.gradient)
        decrease = state.value - value
        shorter = state.step_length * _shortening(expected_decrease, decrease)
        converged = decrease <= TUNING.min_decrease * value
        finished = torch.where(accepted, converged, shorter < TUNING.min_step_length)
        new = accepted[:, None]
        point = torch.where(new, trial, state.point)
        gradient = torch.where(new, gradient, state.gradient)
        state = state._replace(
            point=point,
            gradient=gradient,
            value=torch.where(accepted, value, state.value),
            step_length=torch.where(accepted, 1, shorter),
            finished=finished,
        )
        direction = torch.where(new, _direction(state), state.direction)
        trial = (point + state.step_length[:, None] * direction).clamp_(0, 1)
        x_adv = problem.clip((lower + (upper - lower) * trial).view_as(problem.x))
        return x_adv, state._replace(direction=direction)

    def _evaluate(self, problem: Problem, at: Iterate, const: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objective at the iterates, `(n,)`, and its gradient, `(n, d)`."""
        lower, upper = problem.model.bounds
        width = upper - lower
        delta = at_least_float32(at.x_adv - problem.x).flatten(1).div_(width)
        odds = at.value.detach().to(const.dtype)
        grad = at_least_float32(problem.ascent_direction(at).flatten(1))
        value = _dot(delta, delta) + const * softplus(-odds)
        scale = width * const * torch.sigmoid(-odds)
        return value, delta.mul_(2).addcmul_(scale[:, None], grad, value=-1)


def _shortening(expected_decrease: Tensor, decrease: Tensor) -> Tensor:
    """Return the factor of a rejected step: the minimum of the parabola through what is known.

    Args:
        expected_decrease: change of the objective by its gradient, negative, `(n,)`.
        decrease: measured decrease of the objective, `(n,)`.
    """
    low, high = TUNING.max_shortening, TUNING.min_shortening
    factor = expected_decrease / (2 * (expected_decrease + decrease))
    return factor.nan_to_num(low).clamp(low, high)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


def _products(pairs: Tensor, v: Tensor) -> Tensor:
    """Return the products `(n, memory)` of each of `pairs` `(n, memory, d)` with `v` `(n, d)`."""
    with torch.autocast(pairs.device.type, enabled=False):  # autocast is for the model alone
        return (pairs @ v[:, :, None]).squeeze(2)


def _combination(weights: Tensor, pairs: Tensor) -> Tensor:
    """Return the sum `(n, d)` of `pairs` `(n, memory, d)` with `weights` `(n, memory)`."""
    with torch.autocast(pairs.device.type, enabled=False):
        return (weights[:, None] @ pairs).squeeze(1)


def _with_pair(state: _SolverState, accepted: Tensor, s: Tensor, y: Tensor) -> _SolverState:
    """Return the state with the pair `s`, `y` of each `accepted` step with positive curvature."""
    curvature = _dot(s, y)
    good = accepted & (curvature > TUNING.min_curvature * _dot(y, y)) & (curvature > 0)
    rows = good.nonzero().flatten()
    place = state.place[rows] % state.rho.shape[1]
    state.s[rows, place] = s[rows]
    state.y[rows, place] = y[rows]
    state.rho[rows, place] = 1 / curvature[rows]
    state.sy[rows, place] = _products(state.s, y)[rows]
    yy = _products(state.y, y)[rows]
    state.yy[rows, place] = yy
    state.yy[rows, :, place] = yy
    return state._replace(place=state.place + good)


def _direction(state: _SolverState) -> Tensor:
    """Return minus the inverse Hessian times the gradient, over the features that are free."""
    point, gradient = state.point, state.gradient
    free = ~((point <= 0) & (gradient > 0) | (point >= 1) & (gradient < 0))
    q = gradient * free
    gamma, alpha, weights = _two_loops(state, _products(state.s, q), _products(state.y, q))
    hessian_q = gamma * (q - _combination(alpha, state.y)) + _combination(weights, state.s)
    direction = -hessian_q * free
    downhill = _dot(direction, gradient) < 0
    return torch.where(downhill[:, None], direction, -0.5 * q)


def _two_loops(state: _SolverState, sq: Tensor, yq: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run the two-loop recursion (Nocedal, 1980) on the products of the vectors alone.

    The vectors themselves are read twice, before and after, for any number of pairs (Chen, Wang and
    Zhou, 2014, "Large-scale L-BFGS using MapReduce").

    Args:
        state: with the pairs and their products.
        sq: products s . q with the gradient `q`, `(n, memory)`.
        yq: products y . q, `(n, memory)`.

    Returns:
        `gamma` `(n, 1)`, `alpha` `(n, memory)` and `weights` `(n, memory)`: the inverse Hessian
        times `q` is gamma * (q - the sum of alpha * y) + the sum of weights * s, where the weights
        are alpha - beta.
    """
    rows, memory = torch.arange(len(state.place), device=state.place.device), state.rho.shape[1]
    order = [(state.place - 1 - back) % memory for back in range(memory)]
    alpha, weights = torch.zeros_like(yq), torch.zeros_like(sq)
    for place in order:  # from the newest pair to the oldest
        s_dot = sq[rows, place] - _dot(alpha, state.sy[rows, :, place])
        alpha[rows, place] = state.rho[rows, place] * s_dot
    newest = order[0]
    rho, yy = state.rho[rows, newest], state.yy[rows, newest, newest]
    gamma = 1 / (rho * yy).clamp_min(1e-30)
    gamma = torch.where(rho > 0, gamma, 0.5)[:, None]  # the Hessian of |delta|^2 alone is 2
    yq = gamma * (yq - _products(state.yy, alpha))
    for place in reversed(order):
        y_dot = yq[rows, place] + _dot(weights, state.sy[rows, place])
        weights[rows, place] = alpha[rows, place] - state.rho[rows, place] * y_dot
    return gamma, alpha, weights
