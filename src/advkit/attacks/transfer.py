"""Transfer: examples of one model against another."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from advkit.attacks.engine.black_box import BlackBoxAttack
from advkit.attacks.engine.problem import Problem
from advkit.attacks.engine.records import Best, Nearest
from advkit.attacks.engine.rows import update_rows
from advkit.core.attack_options import with_stop
from advkit.core.norms import Norm
from advkit.core.protocols import Attack
from advkit.models import as_classifier
from advkit.models.labels import given_labels


@dataclass(frozen=True, kw_only=True, repr=False)
class Transfer(BlackBoxAttack):
    """Attack a surrogate, and judge on the model what was found (Papernot et al., 2016).

    Many adversarial examples of one model fool another (arXiv:1605.07277), so that whoever has any
    differentiable model of the same task, their own or a `Substitute`, can attack one whose insides
    nobody sees. The model is asked for the label of each result, once; with a minimum-norm attack
    also for that of the clean input where the result does not fool it, since that is what comes
    back then. What is sent through the surrogate is not counted.

    Args:
        attack: what to attack the surrogate with. If its `stop` is `None` it goes on to the
            strongest example, since what barely fools the surrogate seldom fools another model.
        surrogate: a model that `attack` can attack, with the bounds of the model.

    Attributes:
        norm: that of `attack`.
        eps: that of `attack`, `None` for a minimum-norm attack.

    Where the surrogate ends the attack (a spent budget, a service that fails), the error's `result`
    has the clean inputs: the model has not been queried by then.

    Raises:
        TypeError: `attack` is not an attack, or `surrogate` not a model.

    Example:
        >>> import torch
        >>> from sklearn.tree import DecisionTreeClassifier
        >>> from advkit import attacks
        >>> x, y = torch.rand(80, 4), torch.arange(80) % 2
        >>> tree = DecisionTreeClassifier().fit(x, y)
        >>> net = torch.nn.Linear(4, 2)
        >>> transfer = attacks.Transfer(attack=attacks.FGSM(eps=0.2), surrogate=net)
        >>> int(transfer.run(tree, x, y).queries.forward.sum())
        80
    """

    attack: Attack
    surrogate: object
    norm: Norm = field(init=False, repr=False)
    eps: float | Tensor | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.attack, type) or not hasattr(self.attack, "run"):
            raise TypeError(f"`attack` must be an attack, got {self.attack!r}")
        as_classifier(self.surrogate)
        object.__setattr__(self, "norm", getattr(self.attack, "norm", "linf"))
        object.__setattr__(self, "eps", getattr(self.attack, "eps", None))

    def _search(self, problem: Problem) -> Best:
        surrogate = as_classifier(self.surrogate)
        if tuple(surrogate.bounds) != tuple(problem.model.bounds):
            raise ValueError(
                f"`surrogate` must have the bounds of the model, {tuple(problem.model.bounds)}, "
                f"got {tuple(surrogate.bounds)}"
            )
        # Clones: an attack of the user's may write to what it gets.
        labels = given_labels(surrogate, problem.goal.labels).clone()
        goal = {"target": labels} if problem.goal.targeted else {"y": labels}
        found = with_stop(self.attack, "never").run(surrogate, problem.x.clone(), **goal)
        problem.statistics.no_gradient |= found.no_gradient
        problem.statistics.no_start |= found.no_start
        return Best.unevaluated(found.x_adv)

    def _empty_record(self, problem: Problem) -> Nearest:
        return Nearest.empty(
            problem.x
        )  # a budget attack asks once: all of it is judged, or nothing

    def _verify(self, problem: Problem, found: Best | Nearest) -> Best:
        at = problem.forward(found.x_adv, differentiate=False)
        seen = Best(at.x_adv, at.violation)
        failed = (~seen.success).nonzero().flatten()
        if self.eps is None and len(failed):
            clean = problem.select(failed)
            update_rows(seen, failed, Best(clean.x, clean.violation(clean.x)))
        return seen
