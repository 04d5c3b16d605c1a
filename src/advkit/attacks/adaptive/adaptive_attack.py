"""Attacks on a model and the detector that guards it, together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from advkit.attacks.adaptive.guarded_model import behind_guards
from advkit.attacks.engine.black_box import BlackBoxAttack, ByLabels
from advkit.attacks.engine.budget import BudgetAttack
from advkit.attacks.engine.logit_scale import LogitScale
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Best
from advkit.attacks.engine.rows import update_rows
from advkit.attacks.engine.run_statistics import RunStatistics
from advkit.core import checks
from advkit.core.attack_options import for_samples, with_seed
from advkit.core.losses import Loss, LossName, check_loss, get_loss, margin
from advkit.core.norms import Norm
from advkit.models import as_classifier, as_differentiable


@dataclass(frozen=True, kw_only=True, repr=False)
class Adaptive(BlackBoxAttack):
    """Attack a guarded model by losses that know of the guard, and let the guard judge.

    A robustness claim counts against an attacker who knows the defense (Carlini and Wagner, 2017,
    arXiv:1705.07263; Tramer et al., 2020, arXiv:2002.08347). Each of the losses is climbed on the
    model behind the guard; of each climb the iterate of greatest loss goes to the guard itself; and
    what it answers with a wrong label is a success, after which the sample is left alone. Nothing
    ends at the first misclassification, which is where detectors are at their best.

    Against a detector of outputs try `Evasion`, through a surrogate of it with several thresholds,
    and `Mimicry`, which needs none. The first loss may be `"ce"`: that is the attack that does not
    know of the guard.

    On a model that has logits itself, unguarded, it is the inner attack with several losses.

    Deviation: one candidate of each climb is sent to the guard, not every iterate: a real guard
    counts its alarms.

    Args:
        attack: what climbs: an `FGSM`, `FGM`, `BIM` or `PGD`, whose own `loss` and `stop` are not
            used.
        losses: what to climb, one after another: names or functions `(logits, y) -> (n,)`, at least
            one.
        restarts: how often to go through the losses, from other random starts: the `seed` of
            `attack` is one more each time.

    Attributes:
        norm: that of `attack`.
        eps: that of `attack`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range; `restarts` without random starts.

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
        >>> guard.predict(pgd(guard.model, x, y))  # wrong, and surer than clean inputs are
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
            raise TypeError(f"`attack` must be an FGSM, FGM, BIM or PGD, got {self.attack!r}")
        if isinstance(self.losses, str) or not isinstance(self.losses, Sequence):
            raise TypeError(f"`losses` must be a list of losses, got {self.losses!r}")
        if not self.losses:
            raise ValueError("`losses` must hold a loss or more, got none")
        for loss in self.losses:
            check_loss(loss)
        checks.integer("restarts", self.restarts, at_least=1)
        if self.restarts > 1 and not getattr(self.attack, "random_start", False):
            raise ValueError("`restarts` must be 1 without random starts: all would be the same")
        object.__setattr__(self, "losses", tuple(self.losses))
        object.__setattr__(self, "norm", self.attack.norm)
        object.__setattr__(self, "eps", self.attack.eps)

    def _adapt_model(self, model: object) -> ByLabels:
        return _Guarded(as_classifier(model))

    def _ascent_loss(self, *, targeted: bool) -> Loss:
        if targeted:
            raise ValueError("`target` must be None: Adaptive has no targeted form")
        return margin

    def _search(self, problem: Problem) -> Best:
        checks.radii(self.eps, problem.x)  # climbs see only their part of it
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
        """For each sample the iterate of greatest loss that one climb finds."""
        seed = getattr(self.attack, "seed", 0) + restart
        attack: BudgetAttack = for_samples(with_seed(self.attack, seed), part.rows.cpu())
        attack = dataclasses.replace(attack, stop="never")
        climb = _climb(part, get_loss(loss))
        try:
            with part.as_current():
                return attack.search(climb).x_adv
        finally:  # a query budget may end it, and what was sent is sent
            part.statistics.forward[part.rows] += climb.statistics.forward
            part.statistics.backward[part.rows] += climb.statistics.backward
            part.statistics.no_gradient[part.rows] |= climb.statistics.no_gradient
            part.statistics.not_finite[part.rows] |= climb.statistics.not_finite


class _Guarded(ByLabels):
    """A guard, which judges, and the model behind it, which is climbed."""

    def __init__(self, guard: Any) -> None:
        super().__init__(guard)
        inner, _ = behind_guards(guard)
        self.climbed = as_differentiable(inner, "Adaptive")


class _Climb(Problem):
    """A problem in which the greater loss is the lesser shortfall: engines keep the highest."""

    def forward(self, x_adv: Tensor, *, differentiate: bool, first: bool = False) -> Iterate:
        """One forward pass; none is a first look that may raise, since the guard had that.

        What has logits that are not finite is never kept: the guard would not answer.
        """
        at = super().forward(x_adv, differentiate=differentiate)
        if first:
            checks.warn_of_probabilities(at.logits)
        return at._replace(
            violation=torch.where(at.violation.isfinite(), -at.value.detach(), torch.nan)
        )


def _climb(part: Problem, loss: Loss) -> _Climb:
    """`part` on the model behind its guard, as a batch of its own."""
    guarded: Any = part.model
    n, device = len(part.x), part.x.device
    rows, statistics = torch.arange(n, device=device), RunStatistics(n, device)
    statistics.sender, scale = part.statistics.sender.part(part.rows), LogitScale(n)
    return _Climb(guarded.climbed, part.x, part.goal, loss, part.norm, rows, statistics, scale)
