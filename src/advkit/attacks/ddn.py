"""Decoupled direction and norm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.loop import iterate
from advkit.attacks.engine.minimum_norm import MinimumNormAttack
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Nearest
from advkit.attacks.engine.unit_steps import (
    cosine_annealed,
    longest_delta,
    perturbed,
    unit_delta,
    unit_gradient,
)
from advkit.core import checks
from advkit.core.losses import Loss, log_odds_loss
from advkit.core.norms import Norm, lp_norm, normalize, per_sample

ALPHA_INIT = 1.0  # published, like the next one: step length in widths of the bounds
ALPHA_FINAL = 0.01


class _State(NamedTuple):
    """State of each sample from step to step."""

    eps: Tensor  # (n,), length of the perturbation before it is clipped, in widths of the bounds
    finished: Tensor  # bool (n,), no gradient leads away from the clean input


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DDN(MinimumNormAttack):
    """Decoupled direction and norm (Rony et al., 2019, arXiv:1811.09600).

    A cheap search in l2. Each step follows the normalized gradient of the cross-entropy and then
    scales the perturbation to a length of its own. That length shrinks after a success and grows
    after a failure, so that the iterates cross the boundary again and again. It is used in
    adversarial training, and gives a second opinion on `FAB` and `CarliniWagnerL2`. The distance
    is up to `gamma` too long, since the length changes in steps of that size.

    Lengths are in widths of the bounds, so that they have the same meaning for all bounds.

    Deviations from the paper:

    - Images are not rounded to 256 levels.
    - The last iterate is evaluated too, at the cost of one forward pass.
    - The gradient is that of the cross-entropy in log-odds. It has the same direction and does not
      vanish where the model is confident.
    - A gradient of zero moves nothing and is reported. The code of the paper takes a random step.

    Args:
        steps: gradient steps; each costs one forward and one backward pass.
        gamma: share of its length by which the perturbation shrinks after a success and grows
            after a failure, in (0, 1).
        init_norm: length before the first step, in widths of the bounds.
        progress: show a progress bar (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.

    Example:
        >>> import torch
        >>> from advkit import attacks
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> result = attacks.DDN().run(net, torch.rand(5, 1, 8, 8))
        >>> bool(result.success.all()), result.norm
        (True, 'l2')
    """

    steps: int = 100
    gamma: float = 0.05
    init_norm: float = 1.0
    progress: bool = False
    norm: Norm = field(default="l2", init=False)

    def __post_init__(self) -> None:
        checks.integer("steps", self.steps, at_least=1)
        checks.fraction("gamma", self.gamma, "(0, 1)")
        checks.positive("init_norm", self.init_norm)
        checks.boolean("progress", self.progress)

    def _ascent_loss(self, *, targeted: bool) -> Loss:
        return log_odds_loss

    def _total_steps(self, problem: Problem) -> int:
        return self.steps

    def _search_nearest(self, problem: Problem, at: Iterate) -> Nearest:
        nearest = Nearest.empty(problem.x)
        eps = torch.full_like(nearest.distance, self.init_norm)
        return iterate(
            problem,
            problem.x,
            _State(eps, finished=torch.zeros_like(nearest.success)),
            self._step,
            steps=self.steps,
            best=nearest,
            finished=lambda _, state: state.finished,
        )

    def _step(self, i: int, problem: Problem, at: Iterate, state: _State) -> tuple[Tensor, _State]:
        direction = normalize(unit_gradient(problem, at), "l2")
        alpha = cosine_annealed(ALPHA_INIT, ALPHA_FINAL, i, self.steps)
        delta = unit_delta(problem, at.x_adv).add_(direction, alpha=alpha)
        shrunk, grown = (1 - self.gamma) * state.eps, (1 + self.gamma) * state.eps
        eps = torch.where(at.success, shrunk, grown).minimum(longest_delta(problem, "l2"))
        delta = normalize(delta, "l2").mul_(per_sample(eps, delta))
        return perturbed(problem, delta), _State(eps, finished=lp_norm(delta, "linf") == 0)
