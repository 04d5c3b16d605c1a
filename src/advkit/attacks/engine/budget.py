"""Base of FGSM, FGM, BIM, PGD and APGD, which maximize a loss within a perturbation budget."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from advkit.attacks.engine.base import GradientAttack
from advkit.attacks.engine.loop import Stop
from advkit.attacks.engine.problem import Problem
from advkit.attacks.engine.records import Best
from advkit.core import checks
from advkit.core.losses import Loss, LossName, check_loss, dlr_at_target, get_loss
from advkit.core.norms import UNITS, Norm, Unit

BALLS = ("linf", "l2", "l1")


class Search(Protocol):
    """Search for the strongest iterate in a ball, such as an `Ascent`."""

    def search(self, problem: Problem) -> Best:
        """Return the strongest iterates of a batch that is not empty."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class BudgetAttack(GradientAttack):
    """Base of the gradient attacks in a ball of radius `eps`; a subclass defines the ascent."""

    eps: float | Tensor
    loss: LossName | Loss = "ce"
    stop: Stop | None = None

    def __post_init__(self) -> None:
        checks.eps(self.eps)
        check_loss(self.loss)
        checks.one_of("stop", self.stop, ("first", "never", None))

    def craft(self, model: object, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return adversarial inputs `(n, *features)` without the pass that verifies success.

        This is for adversarial training, which passes the examples forward anyway. That pass is up
        to a fifth of the cost of a single-step attack and its training step. The method does not
        warn, and raises the errors of `run`. A class of yours that overrides `run` must override
        this method too.
        """
        adapted = self._adapt_model(model)
        with self.running(adapted, x):
            problem = self._problem(adapted, x, y, None)
            return self.search(problem).x_adv if len(problem.x) else problem.x

    @abstractmethod
    def _ascent(self, eps: Tensor) -> Search:
        """Return the search in balls of radius `eps` `(n,)`."""

    def _search(self, problem: Problem) -> Best:
        return self._ascent(checks.radii(self.eps, problem.x)).search(problem)

    @property
    def _stop(self) -> Stop:
        return self.stop or "first"

    def _ascent_loss(self, *, targeted: bool) -> Loss:
        return ascent_loss(self.loss, targeted=targeted)


def ascent_loss(loss: LossName | Loss, *, targeted: bool) -> Loss:
    """Return the loss to maximize, or to minimize at a target; DLR has a targeted form."""
    return dlr_at_target if targeted and loss == "dlr" else get_loss(loss)


def check_restarts(restarts: int, random_start: bool) -> None:
    """Raise unless `restarts` is at least 1, and exactly 1 if all runs would be equal."""
    checks.integer("restarts", restarts, at_least=1)
    checks.boolean("random_start", random_start)
    if restarts > 1 and not random_start:
        raise ValueError(
            f"`restarts` must be 1 without random_start, got {restarts}. All runs would be equal."
        )


def check_step_size(step_size: float | None) -> None:
    """Raise unless `step_size` is positive or `None`."""
    if step_size is not None:
        checks.positive("step_size", step_size)


def check_unit(eps: float | Tensor, norm: Norm, unit: Unit) -> None:
    """Raise unless `unit` and `eps` suit the norm."""
    checks.one_of("unit", unit, UNITS)
    if norm == "l0":
        checks.count_eps(eps, unit)
    elif unit != "feature":
        raise ValueError(
            f"`unit` must be 'feature' with norm {norm!r}, got {unit!r}. Only "
            "budgets in l0 count pixels: pass norm='l0'."
        )
