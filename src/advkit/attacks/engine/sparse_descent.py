"""Descent on the number of changed features, the search of sigma-zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.box_adam import BETA1, BETA2, EPS
from advkit.attacks.engine.loop import iterate
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Nearest
from advkit.attacks.engine.unit_steps import (
    cosine_annealed,
    perturbed,
    unit_delta,
    unit_gradient,
)
from advkit.core.norms import lp_norm, normalize, per_sample
from advkit.core.tensors import at_least_float32

FINAL_SHARE = 0.1  # published: last learning rate over the first one


class _State(NamedTuple):
    """State of each sample from step to step."""

    exp_avg: Tensor  # (n, *features), running mean of the gradients
    exp_avg_sq: Tensor  # (n, *features), running mean of their squares
    tau: Tensor  # (n,), smaller changes are set to zero, in widths of the bounds
    finished: Tensor  # bool (n,), no further step can bring it nearer


@dataclass(frozen=True, kw_only=True)
class SparseDescent:
    """Adam on the missing margin plus a smooth share of the features that change.

    Attributes:
        steps: steps of Adam; each costs one forward and one backward pass.
        lr: learning rate of the first step, in widths of the bounds.
        sigma: square of the change, in widths of the bounds, that counts as half a feature.
        tau_init: threshold before the first step, in widths of the bounds.
        tau_factor: change of the threshold after each step, as a multiple of the learning rate.
    """

    steps: int
    lr: float = 1.0
    sigma: float = 1e-3
    tau_init: float = 0.3
    tau_factor: float = 0.01

    def search(
        self, problem: Problem, start: Tensor, nearest: Nearest, *, eps: Tensor | None = None
    ) -> Nearest:
        """Return `nearest` with the successes of a descent from `start` that change fewer features.

        Args:
            problem: `n` samples.
            start: first iterates, `(n, *features)`.
            nearest: record of these samples so far.
            eps: number of features at which a success ends the descent, `(n,)`, or `None`.
        """
        zero = torch.zeros_like(at_least_float32(problem.x))
        return iterate(
            problem,
            start,
            _State(
                exp_avg=zero,
                exp_avg_sq=zero.clone(),
                tau=torch.full_like(nearest.distance, self.tau_init),
                finished=torch.zeros_like(nearest.success),
            ),
            self._step,
            steps=self.steps,
            best=nearest,
            finished=lambda _, state: state.finished,
            within=eps,
        )

    def _step(self, i: int, problem: Problem, at: Iterate, state: _State) -> tuple[Tensor, _State]:
        delta = unit_delta(problem, at.x_adv)
        optimal = at.success & (lp_norm(delta, "l0") <= 1)
        gradient = self._gradient(problem, at, delta)
        x_adv = perturbed(problem, delta + self._adam_step(i, gradient, state))
        change = self.tau_factor * self._lr(i + 1)
        tau = torch.where(at.success, state.tau + change, state.tau - change).clamp_(0, 1)
        small = unit_delta(problem, x_adv).abs() < per_sample(tau, delta)
        stuck = lp_norm(state.exp_avg, "linf") == 0
        return torch.where(small, problem.x, x_adv), state._replace(
            tau=tau, finished=optimal | stuck
        )

    def _lr(self, i: int) -> float:
        """Return the learning rate of step `i`."""
        return cosine_annealed(self.lr, FINAL_SHARE * self.lr, i, self.steps)

    def _gradient(self, problem: Problem, at: Iterate, delta: Tensor) -> Tensor:
        """Return the gradient of the sum to minimize, of unit linf norm, as a new tensor.

        Args:
            problem: `n` samples.
            at: their iterates, with a graph.
            delta: their perturbations in widths of the bounds, `(n, *features)`.
        """
        margin = unit_gradient(problem, at)
        missing = torch.where(per_sample(at.success, margin), 0, -margin)
        share = 2 * self.sigma * delta / (delta.square() + self.sigma).square() / delta[0].numel()
        return normalize(missing + share, "linf")

    def _adam_step(self, i: int, gradient: Tensor, state: _State) -> Tensor:
        """Return the move of step `i`, and update the running means in place."""
        state.exp_avg.lerp_(gradient, 1 - BETA1)
        state.exp_avg_sq.lerp_(gradient.square(), 1 - BETA2)
        scale = (state.exp_avg_sq / (1 - BETA2 ** (i + 1))).sqrt_().add_(EPS)
        return (state.exp_avg / scale).mul_(-self._lr(i) / (1 - BETA1 ** (i + 1)))
