"""What FGSM, FGM, BIM and PGD have in common: a budget and a loss to climb within it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advkit.attacks.engine.base import GradientAttack
from advkit.attacks.engine.loop import Stop
from advkit.core import checks
from advkit.core.losses import Loss, LossName, check_loss, get_loss
from advkit.models import hold

BALLS = ("linf", "l2", "l1")


@dataclass(frozen=True, kw_only=True, repr=False)
class BudgetAttack(GradientAttack):
    """A gradient attack within a ball of radius `eps`."""

    eps: float | Tensor
    loss: LossName | Loss = "ce"
    stop: Stop | None = None

    def __post_init__(self) -> None:
        checks.eps(self.eps)
        check_loss(self.loss)
        checks.one_of("stop", self.stop, ("first", "never", None))

    def craft(self, model: object, x: Tensor, y: Tensor | None = None) -> Tensor:
        """What calling the attack gives, without the last pass, which tells whether it succeeded.

        For training, which sends the examples forward anyway: of one step and the step that learns
        from it, that pass is up to a fifth. What `run` would warn of is not looked at. A
        class of one's own that overrides `run` overrides this too.

        Raises as `run` does.
        """
        view = self._view(model)
        with torch.inference_mode(False), torch.no_grad(), hold(view):
            problem = self._problem(view, x, y, None)
            return self._search(problem).x_adv if len(problem.x) else problem.x

    @property
    def _stop(self) -> Stop:
        return self.stop or "first"

    def _objective(self, *, targeted: bool) -> Loss:
        if targeted and self.loss == "dlr":
            raise ValueError("loss must not be 'dlr' with a target; 'ce' and 'margin' have targets")
        return get_loss(self.loss)
