"""Sigma-zero."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.box_adam import BETA1, BETA2, EPS
from advkit.attacks.engine.loop import iterate
from advkit.attacks.engine.minimum_norm import MinimumNormAttack
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Nearest
from advkit.attacks.engine.unit_steps import (
    cosine_annealed,
    perturbed,
    unit_delta,
    unit_gradient,
)
from advkit.core import checks
from advkit.core.norms import Norm, lp_norm, normalize, per_sample
from advkit.core.tensors import at_least_float32

FINAL_SHARE = 0.1  # published: last learning rate over the first one


class _State(NamedTuple):
    """State of each sample from step to step."""

    exp_avg: Tensor  # (n, *features), running mean of the gradients
    exp_avg_sq: Tensor  # (n, *features), running mean of their squares
    tau: Tensor  # (n,), smaller changes are set to zero, in widths of the bounds
    finished: Tensor  # bool (n,), no further step can bring it nearer


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SigmaZero(MinimumNormAttack):
    """Sigma-zero (Cinà et al., 2025, arXiv:2402.01879).

    The attack of choice in l0, the number of features that change. It minimizes the missing margin
    plus a smooth form of the share of features that change, the mean of d^2 / (d^2 + sigma) over
    the changes d, by Adam as in the code of the paper. After each step the changes below a
    threshold are set to zero. The threshold of a sample rises after a success and falls after a
    failure. The nearest success is kept. More steps find sparser examples; the paper takes 1000.

    Changes are in widths of the bounds, so that the parameters have the same meaning for all
    bounds. The two terms of the sum are weighed in units of the logits, as in the paper.

    Deviations from the paper:

    - `steps` is 100 by default.
    - The last iterate is evaluated too, at the cost of one forward pass.
    - A targeted form is added. It takes the margin at the target.
    - A sample of which one feature is enough is finished, and so is one without a gradient, which
      is reported.

    Args:
        steps: steps of Adam; each costs one forward and one backward pass.
        lr: learning rate of the first step, in widths of the bounds. It falls along a cosine to a
            tenth.
        sigma: square of the change, in widths of the bounds, that counts as half a feature. A
            smaller value follows the number of features more closely, but has less of a gradient.
        tau_init: threshold before the first step, in widths of the bounds, in [0, 1].
        tau_factor: change of the threshold after each step, as a multiple of the learning rate, in
            [0, 1].
        progress: show a progress bar (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.

    Example:
        >>> import torch
        >>> from advkit import attacks
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> result = attacks.SigmaZero().run(net, torch.rand(5, 1, 8, 8))
        >>> bool(result.success.all()), result.norm
        (True, 'l0')
    """

    steps: int = 100
    lr: float = 1.0
    sigma: float = 1e-3
    tau_init: float = 0.3
    tau_factor: float = 0.01
    progress: bool = False
    norm: Norm = field(default="l0", init=False)

    def __post_init__(self) -> None:
        checks.integer("steps", self.steps, at_least=1)
        checks.positive("lr", self.lr)
        checks.positive("sigma", self.sigma)
        checks.fraction("tau_init", self.tau_init)
        checks.fraction("tau_factor", self.tau_factor)
        checks.boolean("progress", self.progress)

    def _total_steps(self, problem: Problem) -> int:
        return self.steps

    def _search_nearest(self, problem: Problem, at: Iterate) -> Nearest:
        nearest, zero = Nearest.empty(problem.x), torch.zeros_like(at_least_float32(problem.x))
        return iterate(
            problem,
            problem.x,
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
