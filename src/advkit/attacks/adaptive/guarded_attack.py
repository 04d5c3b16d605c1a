"""What the attacks on a guard share: one pass through its model and its detector of inputs."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from advkit.attacks.engine.black_box import BlackBoxAttack, ByLabels
from advkit.attacks.engine.goal import Goal
from advkit.attacks.engine.loop import iterate
from advkit.attacks.engine.problem import Judged, Problem
from advkit.attacks.engine.records import Best, Nearest, nothing_yet
from advkit.attacks.engine.steepest_ascent import Ascent, _fooled, _Pace
from advkit.core import checks
from advkit.core.losses import own_and_others
from advkit.core.norms import lp_norm, normalize, per_sample, project
from advkit.core.results import InconclusiveWarning
from advkit.core.tensors import wide
from advkit.models import DifferentiableClassifier, as_classifier, as_differentiable

_PARALLEL = 1e-4  # what is left of a gradient beside another one, if that is all, is rounding

_FIRST = 0.9  # share of the way to a success that is tried before halving


class Guarded(ByLabels):
    """A guard, which judges at the end, and what is behind it: its model and its detector.

    Args:
        guard: a classifier; what is no guard has no parts that could raise an alarm.
        wanted_by: the attack, for what an error says.
        asks: what it asks of a detector.

    Attributes:
        inner: the model, which has logits.
        detectors: with their thresholds; none without a guard.

    Raises:
        TypeError: there are no logits, or a detector does not answer what is asked.
    """

    def __init__(self, guard: Any, wanted_by: str, asks: tuple[str, ...]) -> None:
        super().__init__(guard)
        self.detectors: list[tuple[Any, float]] = []
        while not callable(getattr(guard, "logits", None)) and hasattr(guard, "model"):
            if hasattr(guard, "detector"):
                _check_asked(guard.detector, wanted_by, asks)
                self.detectors.append((guard.detector, guard.threshold))
            guard = guard.model  # perhaps a counter's, whose guard is next
        self.inner: DifferentiableClassifier = as_differentiable(guard, wanted_by)

    def excess(self, x: Tensor, labels: Tensor) -> Tensor:
        """How far each part is above its limit if the answers are `labels`, `(n, parts)`."""
        return _beside(x, [d.excess(x, labels, limit) for d, limit in self.detectors], "excess")

    def features(self, x: Tensor) -> Tensor:
        """What the parts look at, `(n, width)`."""
        return _beside(x, [d.features(x) for d, _ in self.detectors], "features")


def _check_asked(detector: object, wanted_by: str, asks: tuple[str, ...]) -> None:
    missing = [name for name in asks if not callable(getattr(detector, name, None))]
    if missing:
        raise TypeError(
            f"{wanted_by} needs a detector of inputs that shows its parts, so a "
            f"DifferentiableDetector; {type(detector).__name__} has no {missing[0]}. "
            "Adaptive is for detectors of outputs"
        )


def _beside(x: Tensor, found: list[Tensor], name: str) -> Tensor:
    """Rows `(n, width)` side by side; of no width where there are none."""
    for rows in found:
        if rows.ndim != 2 or len(rows) != len(x):
            raise ValueError(
                f"the detector must give {name} of shape ({len(x)}, width), a row for each input, "
                f"gave {tuple(rows.shape)}"
            )
    return torch.cat([wide(rows) for rows in (x.new_zeros(len(x), 0), *found)], 1)


def alarm(excess: Tensor) -> Tensor:
    """The sum of what parts `(n, parts)` are above their limits, else that of the nearest to it.

    Minus infinity without parts.
    """
    loud = excess.clamp_min(0).sum(1)
    if not excess.shape[1]:
        return loud - math.inf
    return torch.where(loud > 0, loud, excess.amax(1))


@dataclass(frozen=True)
class Joint(Problem):
    """A problem that model and detector judge in one pass: wrong, and no part above its limit.

    Of what it judges `logits` are the model's and `value` is the subclass's; `shortfall` is by how
    much the worst of all is missed, the class in logits and a part in the units of its excess.
    """

    guarded: Guarded

    def take(self, keep: Tensor) -> Self:
        """The same for the samples where bool `keep` `(n,)` is true, or for those rows."""
        part: Any = super().take(keep)
        return part  # type: ignore[no-any-return]  # `replace` keeps the class

    def judge(self, x_adv: Tensor, *, differentiate: bool, first: bool = False) -> Judged:
        """One forward pass through both; see `Problem.judge`."""
        x_adv = x_adv.detach().requires_grad_(differentiate)
        with torch.set_grad_enabled(differentiate):
            logits = self.logits(x_adv)
            excess = self.guarded.excess(x_adv, self._heading(logits.detach()))
            value = self._value(x_adv, logits, excess)
        if first:
            checks.finite_logits(logits, self.rows)
            checks.warn_of_probabilities(logits)
        missed = self.goal.shortfall(logits.detach())
        worst = torch.cat([missed[:, None], excess.detach().to(missed)], 1).amax(1)
        at = Judged(x_adv, self.rows, None, logits, value, worst)
        self.ledger.keep(self, at)
        return at

    @abstractmethod
    def _value(self, x_adv: Tensor, logits: Tensor, excess: Tensor) -> Tensor:
        """What is climbed, `(n,)` or `(n, goals)`, with its graph."""

    def _heading(self, logits: Tensor) -> Tensor:
        """The class that each iterate is on its way to, `(n,)`: its answer where that is wrong."""
        if self.goal.targeted:
            return self.goal.labels
        return own_and_others(logits, self.goal.labels)[1].argmax(1)


AnyJoint = TypeVar("AnyJoint", bound=Joint)


def recast(kind: type[AnyJoint], problem: Problem, **more: Any) -> AnyJoint:
    """`problem` as one of the `kind` given."""
    shared = {part.name: getattr(problem, part.name) for part in fields(Problem)}
    return kind(**{**shared, **more})


def towards(problem: AnyJoint, classes: Tensor) -> AnyJoint:
    """`problem` with one class of each sample, `(n,)`, as the only one that will do."""
    goal = Goal(classes, problem.goal.highest, True, problem.goal.confidence)
    return replace(problem, goal=goal)


@dataclass(frozen=True)
class TwoGoals(Joint):
    """What is climbed is the class loss and minus the alarm, `(n, 2)`, one of them at a time."""

    orthogonal: bool = False

    def _value(self, x_adv: Tensor, logits: Tensor, excess: Tensor) -> Tensor:
        ascent = self.goal.ascent(self.loss, logits)
        return torch.stack([ascent, -alarm(excess).to(ascent)], 1)

    def gradient(self, at: Judged) -> Tensor:
        """Up the loss while the class is not reached, then down the alarm; `(n, *features)`.

        Beyond success it is whichever of the two is nearer to its limit. If `orthogonal`, in that
        part of the direction that leaves the other goal no worse.
        """
        missed = self.goal.shortfall(at.logits.detach())
        silence = (missed <= 0) & (-at.value.detach()[:, 1] > missed)
        if not self.orthogonal:
            with torch.enable_grad():
                chosen = at.value.gather(1, silence.long()[:, None]).squeeze(1)
            return self.usable(self.pull(at, chosen))
        climbed, other = self.both(at)
        silence = per_sample(silence, climbed)
        pair = (torch.where(silence, other, climbed), torch.where(silence, climbed, other))
        return self.usable(_without(*pair))

    def both(self, at: Judged) -> tuple[Tensor, Tensor]:
        """The gradients of the two, each `(n, *features)`; zero of an alarm that nothing raises."""
        with torch.enable_grad():
            loss, quiet = at.value.unbind(1)
        if not self.guarded.detectors:
            grad = self.pull(at, loss)
            return grad, torch.zeros_like(grad)
        return self.pull(at, loss, again=True), self.pull(at, quiet)


def _without(grad: Tensor, other: Tensor) -> Tensor:
    """Each `grad` `(n, *features)` without what in it opposes `other`, if anything is left then."""
    unit = normalize(other, "l2")
    along = (grad * unit).flatten(1).sum(1).clamp_max(0)
    across = grad - per_sample(along, grad) * unit
    left = lp_norm(across, "l2") > _PARALLEL * lp_norm(grad, "l2")
    return torch.where(per_sample(left, grad), across, grad)


class Clean(NamedTuple):
    """Natural images that the guard accepts."""

    x: Tensor  # (m, *features)
    labels: Tensor  # (m,), the model's
    logits: Tensor  # (m, classes)


@dataclass(frozen=True, kw_only=True, repr=False)
class GuardedAttack(BlackBoxAttack):
    """An attack that knows the guard's model and detector, and is judged by the guard's labels.

    What the model labels as wanted, and the guard accepts, is an adversarial example of unlimited
    distortion already: so an attacker who has `natural` images of several classes has a start.
    """

    natural: Tensor | None = None
    _asks: ClassVar[tuple[str, ...]] = ("excess",)

    def __post_init__(self) -> None:
        x = self.natural
        if x is None:
            return
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"natural must be a tensor of floats or None, got {got}")
        if x.ndim < 2 or not len(x):
            raise ValueError(f"natural must have shape (m, *features), got {tuple(x.shape)}")

    def _view(self, model: object) -> Guarded:
        return Guarded(as_classifier(model), type(self).__name__, self._asks)

    def _joint(self, kind: type[AnyJoint], problem: Problem, **more: Any) -> AnyJoint:
        """`problem` as one of the `kind` given, judged by the model and the detector."""
        view: Any = problem.model
        return recast(kind, problem, model=view.inner, guarded=view, **more)

    def _clean(self, problem: Joint) -> Clean | None:
        """The natural images that are accepted. The pass for that belongs to no sample."""
        if self.natural is None:
            return None
        if self.natural.shape[1:] != problem.x.shape[1:]:
            raise ValueError(
                f"natural must have samples of shape {tuple(problem.x.shape[1:])} like x, "
                f"got {tuple(self.natural.shape[1:])}"
            )
        x = self.natural.detach().to(problem.x)
        lower, upper = problem.model.bounds
        if not ((x >= lower) & (x <= upper)).all():
            raise ValueError(
                f"natural must lie in the model's bounds [{lower:g}, {upper:g}], got values in "
                f"[{x.min():g}, {x.max():g}]"
            )
        logits = wide(problem.model.logits(x).detach())
        labels = logits.argmax(1)
        quiet = (problem.guarded.excess(x, labels) <= 0).all(1)
        keep = quiet & logits.isfinite().all(1)
        return Clean(x[keep], labels[keep], logits[keep])


def nearest_clean(
    clean: Clean, goal: Goal, at: Tensor, places: Tensor, most: int
) -> list[tuple[Tensor, Tensor]]:
    """The nearest of the accepted images that the model labels as wanted, one after another.

    Args:
        clean: `m` images.
        goal: of `n` samples.
        at: where these are, `(n, width)`.
        places: where the images are, `(m, width)`.
        most: how many for each sample.

    Returns:
        Pairs of indices `(n,)` and whether there is such an image, bool `(n,)`; warns of samples
        without any.
    """
    distance = torch.cdist(wide(at), wide(places), compute_mode="donot_use_mm_for_euclid_dist")
    same = goal.labels[:, None] == clean.labels
    distance = distance.masked_fill(~same if goal.targeted else same, math.inf)
    ordered, index = distance.sort(dim=1, stable=True)
    none = ~ordered[:, :1].isfinite().any(1)
    if none.any():
        checks.warn(
            "natural holds no image that the guard accepts with a label to go to for "
            f"{int(none.sum())} of {len(none)} samples (sample {checks.indices(none)}): they have "
            "no such start",
            InconclusiveWarning,
        )
    return list(zip(index[:, :most].unbind(1), ordered.isfinite()[:, :most].unbind(1), strict=True))


def climb(
    ascent: Ascent,
    problem: Joint,
    start: Tensor,
    advance: Callable[[int], None],
) -> Best:
    """What `ascent` finds from the points of its balls that are nearest to `start`."""
    x, eps = problem.x, ascent.eps[problem.rows]
    pace = _Pace(eps, ascent.lengths[problem.rows], x.new_zeros(len(x), *[1] * (x.ndim - 1)))
    return iterate(
        problem,
        ascent._moved(problem, project(start - x, eps, ascent.norm), eps),
        pace,
        ascent._step,
        steps=ascent.lengths.shape[1],
        best=nothing_yet(problem),
        finished=_fooled if ascent.stop == "first" else None,
        advance=advance,
    )


def approach(problem: Joint, nearest: Nearest, halvings: int) -> Nearest:
    """Move each success towards its input by bisection, as far as it stays one."""
    rows = nearest.success.nonzero().flatten()
    if not len(rows):
        return nearest
    part, best = problem.take(rows), nearest.take(rows)
    span = best.x_adv - part.x
    low, high = torch.zeros_like(best.distance), torch.ones_like(best.distance)
    share = _FIRST * high
    for _ in range(halvings):
        x_adv = part.clip(part.x + per_sample(share, span) * span)
        at = part.judge(x_adv, differentiate=False)
        best = best.improved(part, at)
        low, high = torch.where(at.success, low, share), torch.where(at.success, share, high)
        share = (low + high) / 2
    nearest.put(rows, best)
    return nearest
