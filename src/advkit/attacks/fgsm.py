"""Fast gradient sign method."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from advkit.attacks.engine.budget import BudgetAttack
from advkit.attacks.engine.steepest_ascent import Ascent, constant_steps
from advkit.core import checks
from advkit.core.norms import Norm


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FGSM(BudgetAttack):
    """Fast gradient sign method (Goodfellow, Shlens and Szegedy, 2015, arXiv:1412.6572).

    One step of length `eps` along the sign of the gradient, followed by the clip to the bounds. It
    costs one forward and one backward pass, and one forward pass that determines success.

    Deviations from the paper:

    - The loss is the cross-entropy in log-odds (see `advkit.core.losses`). Its gradient has the
      same sign as that of the cross-entropy wherever the latter does not vanish.
    - With `stop="first"`, inputs that are misclassified already are returned unchanged.

    Args:
        eps: radius of the linf ball, in input units, not negative; a float, or `(n,)` with one
            radius for each sample.
        random_start: begin at a uniform point of the ball and take a step of length 1.25 * eps, the
            variant for fast training (Wong, Rice and Kolter, 2020, arXiv:2001.03994).
        loss: loss to maximize: `"ce"`, `"margin"`, `"dlr"` or a callable `(logits, y) -> (n,)`.
        stop: `"first"` does not move inputs that are already misclassified; `"never"` moves every
            input. `None` lets the caller choose; a direct call and an evaluation choose `"first"`.
        seed: seed of the random start, an int.

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.

    Example:
        >>> import torch
        >>> from advkit import attacks
        >>> net = torch.nn.Linear(3, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]))
        >>> attacks.FGSM(eps=0.25)(net, torch.tensor([[0.75, 0.5, 0.5]]), torch.tensor([0]))
        tensor([[0.5000, 0.7500, 0.5000]])
    """

    random_start: bool = False
    seed: int = 0
    norm: Norm = field(default="linf", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.boolean("random_start", self.random_start)
        checks.integer("seed", self.seed)

    def _ascent(self, eps: Tensor) -> Ascent:
        return Ascent(
            eps=eps,
            step_sizes=constant_steps(1.25 * eps if self.random_start else eps, 1),
            random_start=self.random_start,
            seed=self.seed,
            keep="last",
            stop=self._stop,
        )
