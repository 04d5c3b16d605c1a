"""Fast gradient sign method."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from advkit.attacks.engine.budget import BudgetAttack
from advkit.attacks.engine.steepest_ascent import Ascent, constant_steps
from advkit.core import checks
from advkit.core.norms import Norm


@dataclass(frozen=True, kw_only=True, repr=False)
class FGSM(BudgetAttack):
    """Fast gradient sign method (Goodfellow, Shlens and Szegedy, 2015, arXiv:1412.6572).

    One step of length `eps` along the sign of the gradient, then the clip to the bounds: one
    forward and one backward pass to find it and one forward pass to judge it.

    Deviations: the loss is the cross-entropy in log-odds (see `advkit.core.losses`), of the same
    sign gradient where the paper's does not vanish. With `stop="first"` inputs that are
    misclassified from the start come back unchanged.

    Args:
        eps: radius of the linf ball, in input units, not negative; a float, or `(n,)` with one
            radius for each sample.
        random_start: begin at a uniform point of the ball and step 1.25 * eps from there, which is
            the variant for fast training (Wong, Rice and Kolter, 2020, arXiv:2001.03994).
        loss: `"ce"`, `"margin"`, `"dlr"` or a callable `(logits, y) -> (n,)` to climb.
        stop: `"first"` leaves misclassified inputs alone, `"never"` moves every input; `None`
            leaves it to the caller: `"first"` by itself and in an evaluation.
        seed: of the random start, an int.

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
