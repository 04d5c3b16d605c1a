"""Attacks for nets whose gradient misleads, which `suite_defended_nets.py` runs."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import Any

import torch
from defended_nets import LEVELS, KWinners
from study import describe_module
from torch import Tensor, nn

from advkit import attacks
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.steepest_ascent import Ascent, AscentState
from advkit.core.norms import normalize, per_sample, steepest
from advkit.core.randomness import derived_keys, normal, sample_keys
from advkit.models.wrappers import straight_through

LEVEL_MOMENTUM = 0.75
MAX_LEVELS = 4  # by which a step moves a pixel
PAST_LEVEL = 1e-5  # distance past the point where the rounded value changes


@dataclass(frozen=True, kw_only=True)
class AveragedAscent(Ascent):
    """Steepest ascent along the mean gradient of noisy copies of the iterate."""

    copies: int
    sigma: float  # standard deviation of the noise, in multiples of `eps`

    def _step(
        self, i: int, problem: Problem, at: Iterate, state: AscentState
    ) -> tuple[Tensor, AscentState]:
        x_adv = at.x_adv
        keys = derived_keys(sample_keys(x_adv, problem.model.bounds, self.seed), i)
        scale, features = per_sample(self.sigma * state.eps, x_adv), math.prod(x_adv.shape[1:])
        grad = torch.zeros_like(x_adv)
        for copy in range(self.copies):
            noise = normal(derived_keys(keys, copy), features, x_adv.dtype).view_as(x_adv)
            noisy = problem.unrecorded().forward(x_adv + scale * noise, differentiate=True)
            grad += problem.ascent_direction(noisy)
        move = steepest(grad, state.step_sizes[:, i], problem.norm, x_adv, problem.model.bounds)
        return problem.project_to_ball(move.add_(x_adv), state.eps), state


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AveragedPGD(attacks.PGD):
    """PGD whose gradient is averaged over noisy copies, as Tramer et al. (2020) attacked k-WTA.

    Each step takes `copies` forward and backward passes more than its evaluation.
    """

    copies: int = 8
    sigma: float = 0.5

    def _ascent(self, eps: Tensor) -> AveragedAscent:
        base = super()._ascent(eps)
        shared = {field.name: getattr(base, field.name) for field in fields(base)}
        return AveragedAscent(**shared, copies=self.copies, sigma=self.sigma)


@dataclass(frozen=True, kw_only=True)
class LevelAscent(Ascent):
    """Ascent in l2 in which a pixel moves just past the point where its rounded value changes.

    Each step takes the levels that increase the linearized objective the most, for the squared
    distances to them that the ball allows. A distance that ends between two levels is wasted, and
    PGD wastes a quarter of its budget in this way.
    """

    def _step(
        self, i: int, problem: Problem, at: Iterate, state: AscentState
    ) -> tuple[Tensor, AscentState]:
        grad = normalize(problem.ascent_direction(at), "l2")
        velocity = LEVEL_MOMENTUM * state.velocity + grad
        moves, changes = level_moves(problem.x, velocity.sign())
        gain, cost = velocity[..., None] * changes, moves.square()
        chosen = best_moves(gain, cost, state.eps.square())
        x_adv = problem.x + moves.gather(-1, chosen).squeeze(-1)
        return problem.project_to_ball(x_adv, state.eps), state._replace(velocity=velocity)


def level_moves(x: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """Return the moves to the next levels in the direction `sign`, and the rounded changes.

    Both are `(n, *features, moves)`, and the first move is none.
    """
    level = (LEVELS * x).round()
    k = torch.arange(MAX_LEVELS + 1, dtype=x.dtype)
    reached = (level[..., None] + sign[..., None] * k).clamp(0, LEVELS)
    lower, upper = (reached - 0.5) / LEVELS + PAST_LEVEL, (reached + 0.5) / LEVELS - PAST_LEVEL
    target = torch.minimum(torch.maximum(x[..., None], lower), upper)
    return target - x[..., None], (reached - level[..., None]) / LEVELS


def best_moves(gain: Tensor, cost: Tensor, budget: Tensor) -> Tensor:
    """Return the move of each feature, `(n, *features, 1)`, of greatest total gain.

    The total cost is at most `budget` `(n,)`. A bisection finds the price of the cost.
    """
    low = torch.zeros_like(budget)
    high = torch.full_like(budget, 1e4)
    for _ in range(40):
        price = (low + high) / 2
        chosen = (gain - per_sample(price, gain) * cost).argmax(-1, keepdim=True)
        fits = cost.gather(-1, chosen).flatten(1).sum(1) <= budget
        low, high = price.where(~fits, low), price.where(fits, high)
    return (gain - per_sample(high, gain) * cost).argmax(-1, keepdim=True)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LevelPGD(attacks.PGD):
    """PGD in l2 that knows the rounding to 3 bits."""

    def _ascent(self, eps: Tensor) -> LevelAscent:
        base = super()._ascent(eps)
        shared = {field.name: getattr(base, field.name) for field in fields(base)}
        return LevelAscent(**shared | {"start_radius": 1.0, "wide_radii": ()})


class SoftKWinners(KWinners):
    """k-WTA with the gradient of a sigmoid at its threshold.

    The outputs are exactly those of `KWinners`. The gradient shows which features would pass the
    threshold, which that of `KWinners` leaves out.
    """

    width = 0.1  # of the sigmoid

    def forward(self, x: Tensor) -> Tensor:
        smallest = self.threshold(x)
        soft = x * torch.sigmoid((x - smallest) / self.width)
        return straight_through(soft, super().forward(x).detach())


def with_soft_winners(net: nn.Sequential) -> nn.Sequential:
    """Return a copy of a k-WTA net with the same outputs and the gradient of `SoftKWinners`."""
    copied = deepcopy(net)
    for i, layer in enumerate(copied):
        if isinstance(layer, KWinners):
            copied[i] = SoftKWinners(layer.share)
    return copied.eval()


def soft_pgd(net: nn.Sequential, **options: Any) -> attacks.Transfer:
    """Return PGD on a k-WTA net along the gradient of `with_soft_winners`."""
    return attacks.Transfer(attack=attacks.PGD(**options), surrogate=with_soft_winners(net))


if __name__ == "__main__":
    describe_module(__doc__)
