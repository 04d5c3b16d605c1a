"""Transfer attack: adversarial examples of a surrogate, verified on the model."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from advkit.attacks.engine.black_box import BlackBoxAttack
from advkit.attacks.engine.problem import Problem
from advkit.attacks.engine.records import Best, Nearest
from advkit.attacks.engine.rows import update_rows
from advkit.core.attack_options import measured_norm, with_stop
from advkit.core.norms import Norm
from advkit.core.protocols import Attack
from advkit.models import as_classifier
from advkit.models.labels import given_labels


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Transfer(BlackBoxAttack):
    """Attack on a surrogate that is verified on the model (Papernot et al., 2016).

    Many adversarial examples of one model fool another (arXiv:1605.07277). Anyone who has a
    differentiable model of the same task, their own or a `Substitute`, can therefore attack a
    black-box model. The model predicts the label of each adversarial example once. With a
    minimum-norm attack it also predicts the label of the clean inputs whose examples do not fool
    it, since those are returned. Passes through the surrogate are not counted.

    An error of the surrogate that ends the attack (a query budget, a service that fails) carries
    the clean inputs as its `result`, since the model was not queried before.

    Args:
        attack: attack on the surrogate. If its `stop` is `None` it continues to the strongest
            example, since an example that barely fools the surrogate rarely fools another model.
        surrogate: a model that `attack` can attack, with the bounds of the model.

    Attributes:
        norm: norm of `attack`.
        eps: budget of `attack`, `None` for a minimum-norm attack.

    Raises:
        TypeError: `attack` is not an attack, or `surrogate` is not a model.

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
            raise TypeError(
                f"`attack` must be an attack, such as PGD(eps=0.1), got {self.attack!r}."
            )
        as_classifier(self.surrogate)
        object.__setattr__(self, "norm", measured_norm(self.attack) or "linf")
        object.__setattr__(self, "eps", getattr(self.attack, "eps", None))

    def _search(self, problem: Problem) -> Best:
        surrogate = as_classifier(self.surrogate)
        if tuple(surrogate.bounds) != tuple(problem.model.bounds):
            raise ValueError(
                f"`surrogate` must have the bounds of the model, {tuple(problem.model.bounds)}, "
                f"got {tuple(surrogate.bounds)}."
            )
        # clones, since a user's attack may write to its arguments
        labels = given_labels(surrogate, problem.goal.labels).clone()
        goal = {"target": labels} if problem.goal.targeted else {"y": labels}
        result = with_stop(self.attack, "never").run(surrogate, problem.x.clone(), **goal)
        problem.statistics.no_gradient |= result.no_gradient
        problem.statistics.no_start |= result.no_start
        return Best.unevaluated(result.x_adv)

    def _empty_record(self, problem: Problem) -> Nearest:
        # the model is queried once, so that an interrupt leaves nothing evaluated
        return Nearest.empty(problem.x)

    def _verify(self, problem: Problem, found: Best | Nearest) -> Best:
        at = problem.forward(found.x_adv, differentiate=False)
        verified = Best(at.x_adv, at.violation)
        failed = (~verified.success).nonzero().flatten()
        if self.eps is None and len(failed):
            clean = problem.select(failed)
            update_rows(verified, failed, Best(clean.x, clean.violation(clean.x)))
        return verified
