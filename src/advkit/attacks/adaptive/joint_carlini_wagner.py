"""Carlini and Wagner's attack in l2 on a model and the detector that guards it, together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.adaptive.guarded_attack import GuardedAttack, nearest_clean
from advkit.attacks.adaptive.joint_problem import Joint, TwoGoals, recast, towards
from advkit.attacks.engine.base import move_outward
from advkit.attacks.engine.black_box import warn_of_random_labels
from advkit.attacks.engine.box_adam import SCHEDULES, BoxAdam, Schedule
from advkit.attacks.engine.constant_search import (
    CLOSE,
    FINER,
    MAX_CONST,
    WIDER,
    Bracket,
    PenaltyState,
    warm_start,
)
from advkit.attacks.engine.minimum_norm import candidates
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Best, Nearest
from advkit.attacks.engine.rows import choose, select, update_rows
from advkit.core import checks
from advkit.core.losses import margin
from advkit.core.norms import Norm, lp_norm, per_sample
from advkit.core.tensors import at_least_float32

_AMPLE = 4.0  # the first constants, as a multiple of what would balance a linear detector
_HALVINGS = 10
_FIRST_SHARE = 0.9  # of the way to a success, tried before the way is halved
_TRIES = 2  # rounds for each class before the best of them is chosen
_WEAK = 1000  # the article's constant of the detector, as a multiple of the first of the class


class _Unmet(NamedTuple):
    """What the best iterate of each sample of a batch left to do in one round."""

    least: Tensor  # (N,), weighted sum
    terms: Tensor  # (N, 2), of class and detector

    def note(self, rows: Tensor, terms: Tensor, missing: Tensor) -> None:
        """Keep, in place, what is less."""
        terms, missing = terms.to(self.terms), missing.to(self.least)
        less = missing < self.least[rows]
        self.least[rows[less]], self.terms[rows[less]] = missing[less], terms[less]


@dataclass(frozen=True)
class _Penalty(Joint):
    """What is climbed is minus the weighted hinges of the class and of the detector's parts."""

    room: float
    weight: Tensor  # (N, 2), for the whole batch
    unmet: _Unmet

    def _value(self, x_adv: Tensor, logits: Tensor, excess: Tensor) -> Tensor:
        behind = self.goal.confidence - self.goal.objective(margin, logits)
        above = (excess + self.room).clamp_min(0).sum(1)
        terms = torch.stack([behind.clamp_min(0), above.to(behind)], 1)
        missing = (self.weight[self.rows].to(terms) * terms).sum(1)
        self.unmet.note(self.rows, terms.detach(), missing.detach())
        return -missing


class _Course(NamedTuple):
    """Where samples are heading, and by which constants, each with its bracket."""

    heading: Tensor  # (n,), the class gone for
    reach: Tensor  # (n,), the distance to expect, in widths of the box
    const: Tensor  # (n, 2)
    low: Tensor  # (n, 2)
    high: Tensor  # (n, 2)
    least: Tensor  # (n,), what was missing at the best iterate

    def after(self, success: Tensor, unmet: Tensor, free: Tensor) -> _Course:
        """The constants to try next.

        Args:
            success: whether those of this round led to one, bool `(n,)`.
            unmet: which of the two terms was not, at the best iterate, bool `(n, 2)`.
            free: which of the two constants are searched for, bool `(2,)`.
        """
        lowered = success[:, None] & free
        raised = ~success[:, None] & unmet & free
        bracket = Bracket(self.const, self.low, self.high).narrowed(lowered, raised)
        if free.all():  # what was enough beside another constant may not be enough beside this one
            closed = raised & (bracket.low > CLOSE * bracket.high)
            bracket = bracket._replace(high=torch.where(closed, math.inf, bracket.high))
        const = torch.where(lowered | raised, bracket.next(), self.const)
        return self._replace(const=const, low=bracket.low, high=bracket.high)


@dataclass(frozen=True, kw_only=True, repr=False)
class JointCarliniWagner(GuardedAttack):
    """Carlini and Wagner's attack in l2 on a guarded model (2017, arXiv:1705.07263).

    Minimizes |x_adv - x|^2 + c1 * max(confidence - margin, 0) + c2 * sum of max(excess + room, 0)
    over the parts of the detector, by Adam in the box: the form in which they broke detectors, and
    MagNet (2017, arXiv:1711.08478). Margin and excess are those of one class that the sample heads
    for. What counts is what the guard answers; a rejection is no success, and a failure gives the
    clean input.

    Both constants are searched for, for each sample and each by itself: a round that fails raises
    those whose term its best iterate left unmet, a success lowers both. The first rounds go for the
    likeliest classes one after another from the input, the later ones on from the nearest success.
    What is found is moved towards the input as far as it stays a success.

    Deviations: those of `CarliniWagnerL2`, whose descent this is; both constants are searched for,
    where the paper has one and the article on MRR searches one and leaves the other at 1; the
    start from a natural image. `schedule="published"` is the attack of that article, for comparison: it
    is weak, since its constant of the detector is never raised.

    Args:
        confidence: margin in logits that a success must have inside, not negative.
        detector_confidence: how far below their limits the parts are drawn, in what the detector gives its excess
            in, not negative. A success needs none.
        candidates: how many classes to go for, the likeliest first. Without meaning for a targeted
            attack and in the published schedule.
        search_steps: rounds, each with other constants or another class.
        steps: steps of Adam for each; each costs one forward and one backward pass through model
            and detector.
        lr: learning rate of Adam; `None` takes one that fits the way to go, and 0.01 in the
            published schedule.
        initial_const: the first of both constants, for inputs scaled to [0, 1]; `None` takes what
            would do if logits and excess were linear. In the published schedule that of the class,
            0.001 if `None`; that of the detector is 1000 times as large.
        start_images: clean images `(m, *features)` of several classes that the attacker has, or `None`.
            The nearest of them that the guard accepts with another label, at the target if there is
            one, is moved towards the input as a first success: with it no sample fails for want of
            a way. The pass that judges them belongs to no sample and is not in `queries`.
        schedule: `"adaptive"`; or `"published"`, the schedule of the article on MRR; give it its time too, with
            `search_steps=20, steps=10_000`.
        progress: show a bar (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range, or `start_images` or `detector_confidence` is given with `schedule="published"`.
        TypeError: a value has the wrong type, or at the call, the guard's detector does not show
            its parts.

    Example:
        >>> import torch
        >>> from advkit import attacks
        >>> from advkit.detectors import Guard
        >>> class Far:
        ...     reads_inputs = True
        ...     def anomaly_score(self, x, labels=None):
        ...         return x[:, 0]
        ...     def margin_over_threshold(self, x, labels, threshold):
        ...         return x[:, :1] - threshold
        >>> net = torch.nn.Linear(2, 2)
        >>> _ = net.weight.data.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        >>> _ = net.bias.data.copy_(torch.tensor([1.0, 0.0]))
        >>> guard = Guard(net, Far(), threshold=0.4)
        >>> attack = attacks.JointCarliniWagner()
        >>> attack(guard, torch.tensor([[0.4, 0.4]]), torch.tensor([0])).round(decimals=2)
        tensor([[0.4000, 0.6000]])
    """

    confidence: float = 0.0
    detector_confidence: float = 0.0
    candidates: int = 3
    search_steps: int = 9
    steps: int = 100
    lr: float | None = None
    initial_const: float | None = None
    schedule: Schedule = "adaptive"
    progress: bool = False
    norm: Norm = field(default="l2", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative("confidence", self.confidence)
        checks.not_negative("detector_confidence", self.detector_confidence)
        checks.integer("candidates", self.candidates, at_least=1)
        checks.integer("search_steps", self.search_steps, at_least=1)
        checks.integer("steps", self.steps, at_least=1)
        for name in ("lr", "initial_const"):
            if getattr(self, name) is not None:
                checks.positive(name, getattr(self, name))
        checks.one_of("schedule", self.schedule, SCHEDULES)
        checks.boolean("progress", self.progress)
        if self.schedule == "published" and (
            self.start_images is not None or self.detector_confidence
        ):
            raise ValueError(
                "`start_images` and `detector_confidence` must not be given with schedule='published', "
                "which has neither. Leave them out."
            )

    def _empty_record(self, problem: Problem) -> Nearest:
        return Nearest.empty(problem.x)

    def _total_steps(self, problem: Problem) -> int:
        return self.search_steps * self.steps

    def _search(self, problem: Problem) -> Nearest:
        weight, unmet = _fresh(problem, at_least_float32(problem.x).new_ones(len(problem.x), 2))
        goal = replace(problem.goal, confidence=self.confidence)
        joint = self._joint(
            _Penalty, problem, goal=goal, room=self.detector_confidence, weight=weight, unmet=unmet
        )
        nearest = self._empty_record(joint)
        at = joint.evaluate_clean(nearest)
        rows = (~nearest.success).nonzero().flatten()
        if len(rows):
            search = self._as_published if self.schedule == "published" else self._search_both
            update_rows(nearest, rows, search(joint.select(rows), at.select(rows)))
        return nearest

    def _as_published(self, joint: _Penalty, at: Iterate) -> Nearest:
        """Round after round from the input, whichever class is best, with one constant fixed."""
        nearest = Nearest.empty(joint.x)
        first = self.initial_const or 1e-3
        const = at_least_float32(joint.x).new_tensor([first, _WEAK * first]).expand(len(joint.x), 2)
        course = _begun(joint.goal.labels, torch.ones_like(nearest.distance), const)
        free = torch.tensor([True, False], device=const.device)
        for _ in range(self.search_steps):
            found, _ = self._round(joint, course, joint.x, course.reach)
            nearest = nearest.nearer(found)
            course = course.after(found.success, torch.ones_like(const, dtype=torch.bool), free)
        return nearest

    def _search_both(self, joint: _Penalty, at: Iterate) -> Nearest:
        """Class after class from the input, then on from the nearest success."""
        nearest, course, rounds = self._towards_each(joint, at)
        nearest, course = self._from_natural(joint, nearest, course)
        for _ in range(rounds):
            nearest, course = self._onward(joint, nearest, course)
        return nearest

    def _towards_each(self, joint: _Penalty, at: Iterate) -> tuple[Nearest, _Course, int]:
        """Some rounds for each of the likeliest classes; the best course, and how many are left."""
        classes = candidates(at, joint.goal, min(self.candidates, self.search_steps))
        headings = classes or [joint.goal.labels]
        tries = max(1, min(_TRIES, self.search_steps // len(headings)))
        nearest = Nearest.empty(joint.x)
        blank = at_least_float32(joint.x).new_ones(len(joint.x), 2)
        course = _begun(headings[0], blank[:, 0], blank)
        for heading in headings:
            found, tried = Nearest.empty(joint.x), self._linear(towards(joint, heading))
            for _ in range(tries):
                found, tried = self._onward(joint, found, tried)
            better = found.distance < nearest.distance
            better |= ~found.success & ~nearest.success & (tried.least < course.least)
            course = _Course(*choose(better, tried, course))
            nearest = nearest.nearer(found)
        return nearest, course, self.search_steps - tries * len(headings)

    def _onward(
        self, joint: _Penalty, nearest: Nearest, course: _Course
    ) -> tuple[Nearest, _Course]:
        """One more round, from the nearest successes or the inputs."""
        part = towards(joint, course.heading)
        lower, upper = part.model.bounds
        far = torch.where((course.low > 0).any(1), WIDER, 1) * course.reach
        near = FINER * nearest.distance.to(far) / (upper - lower)
        reach = torch.where(nearest.success, near, far)
        found, unmet = self._round(part, course, warm_start(part, nearest), reach)
        both = torch.ones(2, dtype=torch.bool, device=part.x.device)
        course = course.after(found.success, unmet.terms > 0, both)
        return nearest.nearer(bisect_to_boundary(part, found, _HALVINGS)), course._replace(
            least=unmet.least
        )

    def _from_natural(
        self, joint: _Penalty, nearest: Nearest, course: _Course
    ) -> tuple[Nearest, _Course]:
        """The same with the nearest accepted natural images, moved to their inputs."""
        clean = self._clean(joint)
        if clean is None:
            return nearest, course
        places = (joint.x.flatten(1), clean.x.flatten(1))
        for index, exists in nearest_clean(clean, joint.goal, *places, most=1):
            rows = exists.nonzero().flatten()
            chosen = index[rows]
            part = towards(joint.select(rows), clean.labels[chosen])
            at = part.forward(clean.x[chosen], differentiate=False)
            found = bisect_to_boundary(part, Nearest.empty(part.x).improved(part, at), _HALVINGS)
            better = found.distance < nearest.distance[rows]
            if better.any():
                fresh = self._linear(part.select(better))
                update_rows(course, rows[better], fresh)
                update_rows(nearest, rows[better], select(found, better))
        return nearest, course

    def _round(
        self, joint: _Penalty, course: _Course, start: Tensor, reach: Tensor
    ) -> tuple[Nearest, _Unmet]:
        """The nearest successes of one descent from `start`, and what its best iterates lack."""
        weight, unmet = _fresh(joint, course.const)
        part = replace(joint, weight=weight, unmet=unmet)
        one = torch.ones_like(reach)
        adam = BoxAdam(steps=self.steps, lr=self.lr, published=self.schedule == "published")
        found = adam.descend(part, start, PenaltyState(one, torch.zeros_like(one), reach))
        return found, _Unmet(*(v[joint.rows] for v in unmet))

    def _linear(self, part: _Penalty) -> _Course:
        """The constants that would do if logits and excess were linear; 1 without a gradient."""
        two = recast(TwoGoals, part, guarded=part.guarded)
        at = two.forward(two.x, differentiate=True)
        loss, alarm = two.both(at)
        lower, upper = part.model.bounds
        grads = (two.mask_invalid(loss), alarm)
        slope = (upper - lower) * torch.stack(
            [lp_norm(at_least_float32(g), "l2") for g in grads], 1
        )
        gap = at.value.detach().neg() + at.value.new_tensor(
            [self.confidence, self.detector_confidence]
        )
        steep = (slope > 0) & slope.isfinite()
        reach = torch.where(steep, gap.clamp_min(0).to(slope) / slope, 0).amax(1)
        reach = torch.where(reach > 0, reach, 1).clamp_max(math.sqrt(part.x[0].numel()))
        const = torch.where(steep, _AMPLE * reach[:, None] / slope, 1).clamp_max(MAX_CONST)
        if self.initial_const is not None:
            const = torch.full_like(const, self.initial_const)
        return _begun(part.goal.labels, reach, const)

    def _verify(self, problem: Problem, found: Best | Nearest) -> Best:
        verified = Best(found.x_adv, problem.violation(found.x_adv))
        last = move_outward(problem, found, verified)
        warn_of_random_labels(found, last)
        x_adv = torch.where(per_sample(last.success, last.x_adv), last.x_adv, problem.x)
        return Best(x_adv, last.violation)


def _begun(heading: Tensor, reach: Tensor, const: Tensor) -> _Course:
    """A course on which nothing was tried."""
    return _Course(
        heading=heading,
        reach=reach,
        const=const.clone(),
        low=torch.zeros_like(const),
        high=torch.full_like(const, math.inf),
        least=torch.full_like(reach, math.inf),
    )


def _fresh(problem: Problem, const: Tensor) -> tuple[Tensor, _Unmet]:
    """The constants `(n, 2)` of a part as those of the whole batch, and nothing yet of unmet."""
    weight = const.new_ones(problem.statistics.n, 2).index_put((problem.rows,), const)
    return weight, _Unmet(torch.full_like(weight[:, 0], math.inf), torch.zeros_like(weight))


def bisect_to_boundary(problem: Joint, nearest: Nearest, halvings: int) -> Nearest:
    """Move each success towards its input by bisection, as far as it stays one.

    Returns:
        `nearest`, which is written to.
    """
    rows = nearest.success.nonzero().flatten()
    if not len(rows):
        return nearest
    part, best = problem.select(rows), select(nearest, rows)
    span = best.x_adv - part.x
    low, high = torch.zeros_like(best.distance), torch.ones_like(best.distance)
    share = _FIRST_SHARE * high
    for _ in range(halvings):
        x_adv = part.clip(part.x + per_sample(share, span) * span)
        at = part.forward(x_adv, differentiate=False)
        best = best.improved(part, at)
        low, high = torch.where(at.success, low, share), torch.where(at.success, share, high)
        share = (low + high) / 2
    update_rows(nearest, rows, best)
    return nearest
