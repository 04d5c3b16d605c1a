"""Sigma-zero."""

from __future__ import annotations

from dataclasses import dataclass, field

from advkit.attacks.engine.minimum_norm import MinimumNormAttack
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Nearest
from advkit.attacks.engine.sparse_descent import SparseDescent
from advkit.core import checks
from advkit.core.norms import Norm


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SigmaZero(MinimumNormAttack):
    """Sigma-zero (Cinà et al., 2025, arXiv:2402.01879).

    It searches in l0, the number of features that change; `MinimumNorm` runs it too, and is sparser
    on most nets. It minimizes the missing margin
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
        descent = SparseDescent(
            steps=self.steps,
            lr=self.lr,
            sigma=self.sigma,
            tau_init=self.tau_init,
            tau_factor=self.tau_factor,
        )
        return descent.search(problem, problem.x, Nearest.empty(problem.x))
