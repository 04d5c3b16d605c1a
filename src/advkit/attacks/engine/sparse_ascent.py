"""Ascent over sparse perturbations: values, a mask of positions, and swaps of positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.loop import Stop, iterate
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Best
from advkit.attacks.engine.rows import choose
from advkit.attacks.engine.runs import strongest_of_runs
from advkit.attacks.engine.unit_steps import box_width
from advkit.core.norms import are_largest, by_position, normalize, per_sample
from advkit.core.randomness import derived_keys, normal, sample_keys, uniform
from advkit.core.tensors import at_least_float32


@dataclass(frozen=True)
class Tuning:
    """Constants of the ascent.

    Those that the paper lacks were chosen on images that the documentation does not report on.
    """

    alpha: float = 0.25  # step of the values in widths of the bounds, from the paper
    beta: float = 0.25  # step of the mask over the root of the number of positions, from the paper
    patience: int = 3  # steps with the same mask after which it is drawn again, from the paper
    descent_share: float = 0.25  # of the steps, before the swaps
    swap_share: float = 0.5  # of the positions in the first swap; it falls to one position
    noise: float = 0.3  # scale of the Gumbel noise on the logarithms of the gains
    momentum: float = 0.8  # weight of the earlier gradients in their running mean


TUNING = Tuning()
LEAST_GAIN = 1e-30  # whose logarithm is finite in float32


class State(NamedTuple):
    """State of each sample between steps; values are in float32 or a wider dtype."""

    eps: Tensor  # (n,), number of positions
    keys: Tensor  # int64 (n,), of the random numbers
    values: Tensor  # (n, channels, positions), where the mask selects them
    scores: Tensor  # (n, positions), of the mask, before the sigmoid
    mask: Tensor  # bool (n, positions), of the last iterate
    unchanged: Tensor  # int64 (n,), steps since the mask changed
    exp_avg: Tensor  # (n, channels, positions), running mean of the normalized gradients
    best: Tensor  # (n, channels, positions), strongest iterate
    best_mask: Tensor  # bool (n, positions)
    best_gradient: Tensor  # (n, channels, positions), normalized
    violation: Tensor  # (n,), of the strongest iterate


@dataclass(frozen=True, kw_only=True)
class SparseAscent:
    """Sign steps of the values and steps of the mask, then swaps of positions.

    Attributes:
        eps: number of positions for each sample, `(n,)`.
        steps: number of steps; each costs one forward and one backward pass.
        projected: whether values outside of the mask stay as they are.
        restarts: number of independent runs.
        seed: seed of the random numbers.
        stop: `"first"` if a successful sample is finished, else `"never"`.
    """

    eps: Tensor
    steps: int
    projected: bool
    restarts: int
    seed: int
    stop: Stop

    def search(self, problem: Problem) -> Best:
        """Return the best iterates over all restarts; each attacks the remaining samples."""
        best = Best.unevaluated(problem.x)
        return strongest_of_runs(problem, best, self.restarts, self._run, self.stop)

    def _run(self, restart: int, problem: Problem) -> Best:
        """Return the best iterates of one run: the first from the inputs, the others random."""
        start, state = self._start(problem, restart)
        return iterate(
            problem,
            start,
            state,
            partial(self._step, from_input=restart == 0),
            steps=self.steps,
            best=Best.unevaluated(problem.x),
            finished=self._finished,
            first=restart == 0,
        )

    def _start(self, problem: Problem, restart: int) -> tuple[Tensor, State]:
        """Return the first iterates and the state."""
        x = by_position(at_least_float32(problem.x), problem.norm)
        keys = sample_keys(problem.x, problem.model.bounds, self.seed, restart)
        zero, no_mask = torch.zeros_like(x), torch.zeros_like(x[:, 0], dtype=torch.bool)
        state = State(
            eps=self.eps[problem.rows],
            keys=derived_keys(keys, 2),
            values=x,
            scores=zero[:, 0],
            mask=no_mask,
            unchanged=torch.zeros_like(keys),
            exp_avg=zero,
            best=x,
            best_mask=no_mask,
            best_gradient=zero,
            violation=torch.full_like(x[:, 0, 0], math.inf),
        )
        if restart:
            state = at_random(problem, state)
        return sparse_iterates(problem, state.mask, state.values), state

    def _finished(self, at: Iterate, state: State) -> Tensor:
        """Return a mask `(n,)` of the samples that are done, or may not change at all."""
        frozen = state.eps < 1
        return at.success | frozen if self.stop == "first" else frozen

    def _step(
        self, i: int, problem: Problem, at: Iterate, state: State, *, from_input: bool
    ) -> tuple[Tensor, State]:
        grad = normalize(at_least_float32(problem.ascent_direction(at)), "l2")
        grad = by_position(grad, problem.norm)
        state = recorded(i, problem, at, state, grad)
        descents = max(1, int(TUNING.descent_share * self.steps))
        if i == 0 and from_input:
            state = steepest_mask(problem, state, grad)
        elif i < descents:
            state = self._descended(i, problem, state, grad)
        else:
            progress = (i - descents) / (self.steps - descents)
            state = swapped(i, problem, state, progress)
        return sparse_iterates(problem, state.mask, state.values), state

    def _descended(self, i: int, problem: Problem, state: State, grad: Tensor) -> State:
        """Return the state after a step of the values and of the mask, as in the paper."""
        x = by_position(at_least_float32(problem.x), problem.norm)
        (lower, upper), weight = problem.model.bounds, state.scores.sigmoid()
        slope = (grad * (state.values - x)).sum(1) * weight * (1 - weight)
        step = TUNING.beta * math.sqrt(x.shape[2])
        scores = state.scores + step * normalize(slope, "l2")
        sign = torch.where(state.mask[:, None], grad, 0).sign() if self.projected else grad.sign()
        values = (state.values + TUNING.alpha * box_width(problem) * sign).clamp(lower, upper)
        mask = are_largest(scores, state.eps)
        unchanged = torch.where((mask == state.mask).all(1), state.unchanged + 1, 0)
        stuck = unchanged >= TUNING.patience
        if stuck.any():
            drawn = normal(derived_keys(state.keys, i), x.shape[2], x.dtype)
            scores = torch.where(stuck[:, None], drawn, scores)
            mask = torch.where(stuck[:, None], are_largest(scores, state.eps), mask)
            unchanged = torch.where(stuck, 0, unchanged)
        return state._replace(values=values, scores=scores, mask=mask, unchanged=unchanged)


def sparse_iterates(problem: Problem, mask: Tensor, values: Tensor) -> Tensor:
    """Return the inputs with `values` `(n, channels, positions)` where `mask` is true."""
    x = by_position(at_least_float32(problem.x), problem.norm)
    return problem.clip(torch.where(mask[:, None], values, x).view(problem.x.shape))


def gains(problem: Problem, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the most that each position can gain along a gradient, and the values that gain it.

    On a linear model the positions of largest gain are the best ones.

    Args:
        problem: `n` samples.
        grad: `(n, channels, positions)`.

    Returns:
        `(n, positions)`, and `(n, channels, positions)`: bounds, and clean values where the
        gradient is zero.
    """
    x = by_position(at_least_float32(problem.x), problem.norm)
    lower, upper = (torch.full_like(x, bound) for bound in problem.model.bounds)
    ends = torch.where(grad > 0, upper, torch.where(grad < 0, lower, x))
    return (grad * (ends - x)).sum(1) / box_width(problem), ends


def at_random(problem: Problem, state: State) -> State:
    """Return the state with normal scores, and values drawn uniformly from the bounds."""
    x = by_position(at_least_float32(problem.x), problem.norm)
    scores = normal(derived_keys(state.keys, -1), x.shape[2], x.dtype)
    random = uniform(derived_keys(state.keys, -2), x[0].numel(), x.dtype).view_as(x)
    values = problem.model.bounds[0] + box_width(problem) * random
    return state._replace(values=values, scores=scores, mask=are_largest(scores, state.eps))


def steepest_mask(problem: Problem, state: State, grad: Tensor) -> State:
    """Return the state with the positions of largest gain at their bounds, the best of linear.

    Where the gradient is zero, as that of a divergence from the clean output, it is random.
    """
    gain, ends = gains(problem, grad)
    spread = gain.std(1, keepdim=True).nan_to_num(0).clamp_min(LEAST_GAIN)
    scores = (gain - gain.mean(1, keepdim=True)) / spread
    steepest = state._replace(values=ends, scores=scores, mask=are_largest(gain, state.eps))
    flat = (grad == 0).flatten(1).all(1)
    if not flat.any():
        return steepest
    return State(*choose(flat, at_random(problem, state), steepest))


def recorded(i: int, problem: Problem, at: Iterate, state: State, grad: Tensor) -> State:
    """Return the state with the strongest iterates so far and the running mean of gradients.

    An iterate without a mask is the clean input, which is not a start for swaps.
    """
    better = (at.violation <= state.violation) & state.mask.any(1)
    x_adv = by_position(at_least_float32(at.x_adv), problem.norm)
    exp_avg = state.exp_avg.lerp(grad, 1 - TUNING.momentum if i else 1.0)
    return state._replace(
        exp_avg=exp_avg,
        best=torch.where(per_sample(better, x_adv), x_adv, state.best),
        best_mask=torch.where(better[:, None], state.mask, state.best_mask),
        best_gradient=torch.where(per_sample(better, grad), grad, state.best_gradient),
        violation=torch.where(better, at.violation, state.violation),
    )


def swapped(i: int, problem: Problem, state: State, progress: float) -> State:
    """Return the state with a part of the strongest iterate's positions swapped for others.

    Positions that contribute little leave for those of large gain, both chosen with noise.

    Args:
        i: number of the step.
        problem: `n` samples.
        state: their state.
        progress: share of the swaps so far.
    """
    x = by_position(at_least_float32(problem.x), problem.norm)
    grad, changed = (state.best_gradient + state.exp_avg) / 2, state.best_mask
    gain, ends = gains(problem, grad)
    contribution = (grad * (state.best - x)).sum(1) / box_width(problem)
    count = (TUNING.swap_share * (1 - progress) * state.eps.floor()).round().clamp_min(1)
    u = uniform(derived_keys(state.keys, i), x.shape[2], x.dtype)
    noise = -TUNING.noise * torch.log(-torch.log(u))
    entering = (gain.clamp_min(LEAST_GAIN).log() + noise).masked_fill(changed, -math.inf)
    leaving = (noise - contribution.clamp_min(LEAST_GAIN).log()).masked_fill(~changed, -math.inf)
    count = torch.minimum(count, torch.minimum(changed.sum(1), (~changed).sum(1)).to(count.dtype))
    mask = (changed & ~are_largest(leaving, count)) | are_largest(entering, count)
    values = torch.where(changed[:, None], state.best, ends)
    return state._replace(mask=mask, values=values)
