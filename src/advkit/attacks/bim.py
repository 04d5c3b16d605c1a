"""Basic iterative method."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from advkit.attacks.engine.budget import BudgetAttack, check_step_size
from advkit.attacks.engine.steepest_ascent import Ascent, constant_steps, step_schedule
from advkit.core import checks
from advkit.core.norms import Norm


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class BIM(BudgetAttack):
    """Basic iterative method (Kurakin, Goodfellow and Bengio, 2017, arXiv:1607.02533).

    From the clean input, `steps` sign steps of equal length, each followed by the clip to the ball
    and to the bounds.

    Deviations from the paper:

    - The loss is the cross-entropy in log-odds (see `advkit.core.losses`), whose gradient has the
      same sign.
    - The result is the strongest iterate, not the last one.

    Args:
        eps: radius of the linf ball, in input units, not negative; a float, or `(n,)` with one
            radius for each sample.
        steps: gradient steps; each costs one forward and one backward pass.
        step_size: length of a step, in input units; `None` for `1.25 * eps / steps`, the rule of
            the paper: 10 steps of one gray level for an `eps` of 8.
        loss: loss to maximize: `"ce"`, `"margin"`, `"dlr"` or a callable `(logits, y) -> (n,)`.
        stop: `"first"` ends at the first misclassification of a sample, `"never"` runs all steps
            and returns the iterate of largest margin. `None` lets the caller choose; a direct call
            and an evaluation choose `"first"`.

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
