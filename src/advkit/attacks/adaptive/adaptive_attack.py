"""Attacks on a model and the detector that guards it, together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from advkit.attacks._blackbox import BlackBoxAttack, ByLabels
from advkit.attacks._engine import Best, nothing_yet
from advkit.attacks._family import BudgetAttack
from advkit.attacks._problem import Judged, Ledger, Problem
from advkit.core import checks
from advkit.core.attack_options import part_of, with_seed
from advkit.core.hyperparameters import call, settings
from advkit.core.losses import Loss, LossName, check_loss, get_loss, margin
from advkit.core.norms import Norm
from advkit.models import DifferentiableClassifier, as_classifier, as_differentiable

Outputs = Literal["scores", "logits"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Evasion:
    """Loss of a wrong label that raises no alarm (Carlini and Wagner, 2017, arXiv:1705.07263).

    The lesser of the margin and of what is left until the alarm: positive where the model is wrong
    and the detector quiet, and climbed at whichever of the two is worse. A detector that looks at
    the model's output alone sees nothing but the logits, so that this is a loss like any other.

    Deviations: the minimum in place of the paper's further class, so that no class is given a part
    in the logits; its gradient is that of one goal at a time, as Bryniarski et al. (2021,
    arXiv:2106.15023) want it, but without their projection of one gradient on the other.

    Args:
        alarm: differentiable function of outputs `(n, width)` that gives suspicion `(n,)`, such as
            `detectors.Surrogate(...).alarm`.
        threshold: the most suspicion that raises no alarm. One below that of the guard leaves
            room for what a surrogate gets wrong.
        weight: of suspicion against logits, positive: how much margin a unit of suspicion is worth.
        outputs: what `alarm` looks at: `"scores"`, the softmax of the logits, or the `"logits"`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range.

    Example:
        >>> import torch
        >>> from advkit.attacks import Evasion
        >>> loss = Evasion(alarm=lambda p: 1 - p.amax(1), threshold=0.4)
        >>> logits = torch.tensor([[0.0, 2.0], [0.0, 0.1], [2.0, 0.0]])
        >>> loss(logits, torch.tensor([0, 0, 0])) > 0  # only the first is wrong and sure of it
        tensor([ True, False, False])
    """

    alarm: Callable[[Tensor], Tensor]
    threshold: float
    weight: float = 1.0
    outputs: Outputs = "scores"

    def __post_init__(self) -> None:
        if not callable(self.alarm):
            raise TypeError(f"alarm must be a function of outputs, got {type(self.alarm).__name__}")
        checks.number("threshold", self.threshold)
        if not abs(self.threshold) < float("inf"):
            raise ValueError(f"threshold must be finite, got {self.threshold}")
        checks.positive("weight", self.weight)
        checks.one_of("outputs", self.outputs, ("scores", "logits"))

    def __repr__(self) -> str:
        """The call that makes this loss, without what is at its default."""
        return call(type(self).__name__, settings(self))

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """The value to climb `(n,)`, of `logits` `(n, classes)` and labels `y` `(n,)`."""
        outputs = logits.softmax(1) if self.outputs == "scores" else logits
        suspicion = self.alarm(outputs)
        if suspicion.shape != y.shape:
            raise ValueError(
                f"alarm must give suspicion of shape {tuple(y.shape)}, gave "
                f"{tuple(suspicion.shape)}"
            )
        return torch.minimum(margin(logits, y), self.weight * (self.threshold - suspicion))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Mimicry:
    """Loss of outputs unlike those of clean inputs with another label (logit matching).

    Minus the squared distance to the nearest of some clean outputs whose label is not `y`. It knows
    nothing of the detector: what gives the outputs of a clean input is a clean input to whoever
    looks at outputs alone (Tramer et al., 2020, arXiv:2002.08347; on features, Sabour et al., 2016,
    arXiv:1511.05122).

    Deviation: the outputs to match are chosen anew at each step, as the nearest.

    Args:
        logits: `(m, classes)`, the model's for clean inputs, best those that the guard answers;
            of two labels or more. The label of a row is its largest logit.
        outputs: what is matched: the `"logits"`, or `"scores"`, which leaves free what the softmax
            does not show: log-probabilities are compared.

    Raises:
        TypeError: `logits` are no tensor of floats.
        ValueError: `logits` have the wrong shape, are not finite, or all have the same label.

    Example:
        >>> import torch
        >>> from advkit.attacks import Mimicry
        >>> loss = Mimicry(logits=torch.tensor([[3.0, 0.0], [0.0, 2.0]]), outputs="logits")
        >>> loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))  # to (0, 2)
        tensor([-8.])
    """

    logits: Tensor
    outputs: Outputs = "scores"

    def __post_init__(self) -> None:
        rows = self.logits
        if not isinstance(rows, Tensor) or not rows.is_floating_point():
            got = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
            raise TypeError(f"logits must be a tensor of floats, got {got}")
        if rows.ndim != 2:
            raise ValueError(f"logits must have shape (m, classes), got {tuple(rows.shape)}")
        bad = ~rows.isfinite().all(1)
        if bad.any():
            raise ValueError(f"logits must be finite, are not in row {checks.indices(bad)}")
        if not (rows.argmax(1) != rows[:1].argmax(1)).any():
            raise ValueError("logits must have rows of two labels or more: there is none to go to")
        checks.one_of("outputs", self.outputs, ("scores", "logits"))

    def __repr__(self) -> str:
        """The call that makes this loss, without what is at its default."""
        return call(type(self).__name__, settings(self))

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """The value to climb `(n,)`, of `logits` `(n, classes)` and labels `y` `(n,)`."""
        clean = self.logits.detach().to(logits)
        labels = clean.argmax(1)
        if self.outputs == "scores":
            logits, clean = logits.log_softmax(1), clean.log_softmax(1)
        with torch.no_grad():
            distance = torch.cdist(logits, clean)  # (n, m)
            distance[y[:, None] == labels] = torch.inf
            nearest = distance.argmin(1)
        return -(logits - clean[nearest]).square().sum(1)


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
        ...     def suspicion(self, outputs):
        ...         return outputs.max(1)
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(9 * torch.eye(2))
        >>> guard = Guard(net, Sure(), threshold=0.8)
        >>> x, y = torch.tensor([[0.6, 0.5]]), torch.tensor([0])
        >>> pgd = attacks.PGD(eps=0.3, steps=20)
        >>> guard.predict(pgd(guard.model, x, y))  # wrong, and surer than clean inputs are
        tensor([-1])
        >>> loss = Evasion(alarm=lambda p: p.amax(1), threshold=0.8)
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
            raise TypeError(f"attack must be an FGSM, FGM, BIM or PGD, got {self.attack!r}")
        if isinstance(self.losses, str) or not isinstance(self.losses, Sequence):
            raise TypeError(f"losses must be a list of losses, got {self.losses!r}")
        if not self.losses:
            raise ValueError("losses must hold a loss or more, got none")
        for loss in self.losses:
            check_loss(loss)
        checks.whole("restarts", self.restarts, at_least=1)
        if self.restarts > 1 and not getattr(self.attack, "random_start", False):
            raise ValueError("restarts must be 1 without random starts: all would be the same")
        object.__setattr__(self, "losses", tuple(self.losses))
        object.__setattr__(self, "norm", self.attack.norm)
        object.__setattr__(self, "eps", self.attack.eps)

    def _view(self, model: object) -> ByLabels:
        return _Guarded(as_classifier(model))

    def _objective(self, *, targeted: bool) -> Loss:
        if targeted:
            raise ValueError("target must be None: Adaptive has no targeted form")
        return margin

    def _search(self, problem: Problem) -> Best:
        checks.budget(self.eps, problem.x)  # climbs see only their part of it
        at = problem.judge(problem.x, differentiate=False, first=True)
        best = nothing_yet(problem)
        best.put(problem.rows[at.success], Best(at.x_adv, at.shortfall).take(at.success))
        for restart in range(self.restarts):
            for loss in self.losses:
                rows = problem.rows[~best.success]
                if not len(rows):
                    return best
                part = problem.take(rows)
                at = part.judge(self._candidates(part, loss, restart), differentiate=False)
                best.put(rows, Best(at.x_adv, at.shortfall))
        return best

    def _candidates(self, part: Problem, loss: LossName | Loss, restart: int) -> Tensor:
        """For each sample the iterate of greatest loss that one climb finds."""
        seed = getattr(self.attack, "seed", 0) + restart
        attack: BudgetAttack = part_of(with_seed(self.attack, seed), part.rows.cpu())
        attack = dataclasses.replace(attack, stop="never")
        climb = _climb(part, get_loss(loss))
        try:
            return attack._search(climb).x_adv
        finally:  # a query budget may end it, and what was sent is sent
            part.ledger.forward[part.rows] += climb.ledger.forward
            part.ledger.backward[part.rows] += climb.ledger.backward
            part.ledger.blind[part.rows] |= climb.ledger.blind


class _Guarded(ByLabels):
    """A guard, which judges, and the model behind it, which is climbed."""

    def __init__(self, guard: Any) -> None:
        super().__init__(guard)
        self.climbed = _differentiable(guard)


class _Climb(Problem):
    """A problem in which the greater loss is the lesser shortfall: engines keep the highest."""

    def judge(self, x_adv: Tensor, *, differentiate: bool, first: bool = False) -> Judged:
        """One forward pass; none is a first look that may raise, since the guard had that.

        What has logits that are not finite is never kept: the guard would not answer.
        """
        at = super().judge(x_adv, differentiate=differentiate)
        if first:
            checks.warn_of_probabilities(at.logits)
        return at._replace(
            shortfall=torch.where(at.shortfall.isfinite(), -at.value.detach(), torch.nan)
        )


def _climb(part: Problem, loss: Loss) -> _Climb:
    """`part` on the model behind its guard, as a batch of its own."""
    guarded: Any = part.model
    n, device = len(part.x), part.x.device
    rows, ledger = torch.arange(n, device=device), Ledger(n, device)
    return _Climb(guarded.climbed, part.x, part.goal, loss, part.norm, rows, ledger)


def _differentiable(guard: Any) -> DifferentiableClassifier:
    """What has the logits: `guard` itself, or the model that it guards.

    Raises:
        TypeError: nothing that it is around has any.
    """
    while not callable(getattr(guard, "logits", None)) and hasattr(guard, "model"):
        guard = guard.model  # perhaps a counter's, whose guard is next
    return as_differentiable(guard, "Adaptive")
