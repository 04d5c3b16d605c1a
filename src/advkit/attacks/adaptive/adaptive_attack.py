"""Attack on a guarded model with losses that include its detector."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from advkit.attacks.adaptive.guarded_model import unwrap_guards
from advkit.attacks.engine.black_box import BlackBoxAttack, ByLabels
from advkit.attacks.engine.budget import BudgetAttack
from advkit.attacks.engine.logit_scale import LogitScale
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Best
from advkit.attacks.engine.rows import update_rows
from advkit.attacks.engine.run_statistics import RunStatistics
from advkit.core import checks
from advkit.core.attack_options import for_samples, starts_at_random, with_seed
from advkit.core.losses import Loss, LossName, check_loss, get_loss, margin
from advkit.core.norms import Norm
from advkit.models import as_classifier, as_differentiable


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Adaptive(BlackBoxAttack):
    """Attack a guarded model with losses that include its detector; the guard decides on success.

    A robustness claim counts against an attacker who knows the defense (Carlini and Wagner, 2017,
    arXiv:1705.07263; Tramer et al., 2020, arXiv:2002.08347). The inner attack maximizes each of the
    losses on the model inside the guard. It does not stop at the first misclassification, which
    detectors find most easily. The iterate of greatest loss is sent to the guard. If the guard
    returns a wrong label, the sample is a success and leaves the search.

    Against a detector of outputs try `Evasion`, through a `DetectorSurrogate` with several
    thresholds, and `Mimicry`, which needs no surrogate. A first loss of `"ce"` gives the attack
    that does not know about the guard.

    On a model with logits of its own and without a guard, it is the inner attack with several
    losses.

    Deviations from the papers:

    - One iterate of each inner attack is sent to the guard, not every one: a real guard counts its
      alarms.

    Args:
        attack: inner attack: an `FGSM`, `FGM`, `BIM`, `PGD` or `APGD` without `candidates`, whose
            own `loss` and `stop` are ignored.
        losses: losses to maximize, one after another: names or functions `(logits, y) -> (n,)`, at
            least one.
        restarts: number of passes over the losses, with other random starts: the `seed` of `attack`
            increases by one each time.

    Attributes:
        norm: norm of `attack`.
        eps: radius of `attack`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range, or `restarts` is above 1 without random starts.

    Example:
        >>> import torch
        >>> from advkit import attacks
        >>> from advkit.attacks import Adaptive, Evasion
        >>> from advkit.detectors import Guard
        >>> class Sure:
        ...     def anomaly_score(self, outputs):
        ...         return outputs.max(1)
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(9 * torch.eye(2))
        >>> guard = Guard(net, Sure(), threshold=0.8)
        >>> x, y = torch.tensor([[0.6, 0.5]]), torch.tensor([0])
        >>> pgd = attacks.PGD(eps=0.3, steps=20)
        >>> guard.predict(pgd(guard.model, x, y))  # misclassified, and rejected
        tensor([-1])
        >>> loss = Evasion(detector_score=lambda p: p.amax(1), threshold=0.8)
        >>> guard.predict(Adaptive(attack=pgd, losses=[loss])(guard, x, y))
        tensor([1])
    """

    attack: BudgetAttack
    losses: Sequence[LossName | Loss]
    restarts: int = 1
    norm: Norm = field(init=False, repr=False)
    eps: float | Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.attack, BudgetAttack):
            raise TypeError(
                f"`attack` must be an FGSM, FGM, BIM, PGD or APGD, got {self.attack!r}."
            )
        if getattr(self.attack, "candidates", None) is not None:
            raise ValueError(
                f"`attack` must not aim at classes, got {self.attack!r}. Its loss would replace "
                "`losses`: pass an APGD without candidates."
            )
        if isinstance(self.losses, str) or not isinstance(self.losses, Sequence):
            raise TypeError(f"`losses` must be a list of losses, got {self.losses!r}.")
        if not self.losses:
            raise ValueError("`losses` must have at least one loss, got none.")
        for loss in self.losses:
            check_loss(loss)
        checks.integer("restarts", self.restarts, at_least=1)
        if self.restarts > 1 and not starts_at_random(self.attack):
            raise ValueError(
                f"`restarts` must be 1 without random starts, got {self.restarts}: all runs would "
                "be the same. Pass an attack with random_start=True."
            )
        object.__setattr__(self, "losses", tuple(self.losses))
        object.__setattr__(self, "norm", self.attack.norm)
        object.__setattr__(self, "eps", self.attack.eps)

    def _adapt_model(self, model: object) -> ByLabels:
        return _GuardedModel(as_classifier(model))

    def _ascent_loss(self, *, targeted: bool) -> Loss:
        if targeted:
            raise ValueError("`target` must be None for Adaptive, which has no targeted form.")
        return margin

    def _search(self, problem: Problem) -> Best:
        checks.radii(self.eps, problem.x)  # the inner attacks get parts of it
        best = Best.unevaluated(problem.x)
        problem.evaluate_clean(best)
        for restart in range(self.restarts):
            for loss in self.losses:
                rows = problem.rows[~best.success]
                if not len(rows):
                    return best
                part = problem.select(rows)
                at = part.forward(self._candidates(part, loss, restart), differentiate=False)
                update_rows(best, rows, Best(at.x_adv, at.violation))
        return best

    def _candidates(self, part: Problem, loss: LossName | Loss, restart: int) -> Tensor:
        """Return the iterate of greatest loss for each sample, found by the inner attack."""
        seed = getattr(self.attack, "seed", 0) + restart
        attack: BudgetAttack = for_samples(with_seed(self.attack, seed), part.rows.cpu())
        attack = dataclasses.replace(attack, stop="never")
        inner = _inner_problem(part, get_loss(loss))
        try:
            with part.as_current():
                return attack.search(inner).x_adv
        finally:  # the passes count even if a query budget ends the inner attack
            part.statistics.forward[part.rows] += inner.statistics.forward
            part.statistics.backward[part.rows] += inner.statistics.backward
            part.statistics.no_gradient[part.rows] |= inner.statistics.no_gradient
            part.statistics.not_finite[part.rows] |= inner.statistics.not_finite


class _GuardedModel(ByLabels):
    """A guard, whose labels decide about success, and the model inside it."""

    def __init__(self, guard: Any) -> None:
        super().__init__(guard)
        inner, _ = unwrap_guards(guard)
        self.inner = as_differentiable(inner, "Adaptive")


class _InnerProblem(Problem):
    """Problem whose `violation` is minus the loss, so that the iterate of greatest loss is best."""

    def forward(self, x_adv: Tensor, *, differentiate: bool, first: bool = False) -> Iterate:
        """Evaluate iterates; the checks of clean inputs were made on the guard.

        An iterate whose logits are not finite is never the best one: the guard would raise.
        """
        at = super().forward(x_adv, differentiate=differentiate)
        if first:
            checks.warn_of_probabilities(at.logits)
        return at._replace(
            violation=torch.where(at.violation.isfinite(), -at.value.detach(), torch.nan)
        )


def _inner_problem(part: Problem, loss: Loss) -> _InnerProblem:
    """Return `part` as a batch of its own, on the model inside the guard."""
    guarded: Any = part.model
    n, device = len(part.x), part.x.device
    rows, statistics = torch.arange(n, device=device), RunStatistics(n, device)
    statistics.sender, scale = part.statistics.sender.part(part.rows), LogitScale(n)
    return _InnerProblem(guarded.inner, part.x, part.goal, loss, part.norm, rows, statistics, scale)
