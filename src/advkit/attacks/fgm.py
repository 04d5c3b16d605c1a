"""Fast gradient method."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from advkit.attacks.engine.budget import BALLS, BudgetAttack
from advkit.attacks.engine.steepest_ascent import Ascent, constant_steps
from advkit.core import checks
from advkit.core.norms import Norm


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FGM(BudgetAttack):
    """Fast gradient method: FGSM in any norm (Miyato et al., 2017, arXiv:1605.07725, for l2).

    One step of length `eps` in the direction of steepest ascent, followed by the clip to the
    bounds. The direction is the gradient in l2 and its sign in linf. In l1 the features of largest
    gradient move to their bounds, one after another, until the step has length `eps`. Other
    libraries divide the gradient by its l1 norm, which is not the steepest direction of that ball.

    Deviations from the paper:

    - The loss is the cross-entropy in log-odds (see `advkit.core.losses`), whose gradient has the
      same direction.

    Args:
        eps: radius of the ball, in input units, not negative; a float, or `(n,)` with one radius
            for each sample.
        norm: `"l2"`, `"linf"` or `"l1"`.
        loss: loss to maximize: `"ce"`, `"margin"`, `"dlr"` or a callable `(logits, y) -> (n,)`.
        stop: `"first"` does not move inputs that are already misclassified; `"never"` moves every
            input. `None` lets the caller choose; a direct call and an evaluation choose `"first"`.

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.
    """

    norm: Norm = "l2"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("norm", self.norm, BALLS)

    def _ascent(self, eps: Tensor) -> Ascent:
        return Ascent(eps=eps, step_sizes=constant_steps(eps, 1), keep="last", stop=self._stop)
