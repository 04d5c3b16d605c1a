"""Basic iterative method."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from advkit.attacks.engine.budget import BudgetAttack, check_step_size
from advkit.attacks.engine.steepest_ascent import Ascent, constant_steps, step_schedule
from advkit.core import checks
from advkit.core.norms import Norm


@dataclass(frozen=True, kw_only=True, repr=False)
class BIM(BudgetAttack):
    """Basic iterative method (Kurakin, Goodfellow and Bengio, 2017, arXiv:1607.02533).

    `steps` sign steps of equal length from the clean input, each followed by the clip to ball and
    bounds.

    Deviations: the loss is the cross-entropy in log-odds (see `advkit.core.losses`), of the same
    sign gradient. What comes back is the strongest iterate, not the last.

    Args:
        eps: radius of the linf ball, in input units, not negative; a float, or `(n,)` with one
            radius for each sample.
        steps: gradient steps; each costs one forward and one backward pass.
        step_size: length of a step, in input units; `None` for `1.25 * eps / steps`, the paper's
            rule: 10 steps of one grey level for an `eps` of 8.
        loss: `"ce"`, `"margin"`, `"dlr"` or a callable `(logits, y) -> (n,)` to climb.
        stop: `"first"` leaves a sample alone once it is misclassified, `"never"` goes on to the
            strongest example in the ball; `None` leaves it
            to the caller: `"first"` by itself and in an evaluation.

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.
    """

    steps: int = 10
    step_size: float | None = None
    norm: Norm = field(default="linf", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.integer("steps", self.steps, at_least=1)
        check_step_size(self.step_size)

    def _ascent(self, eps: Tensor) -> Ascent:
        if self.step_size is None:
            step_sizes = constant_steps(1.25 * eps / self.steps, self.steps)
        else:
            step_sizes = step_schedule(eps, self.steps, self.step_size)
        return Ascent(eps=eps, step_sizes=step_sizes, stop=self._stop)
