"""Carlini and Wagner's attack in l2 on a guarded model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.adaptive.guarded_attack import GuardedAttack, nearest_clean
from advkit.attacks.adaptive.joint_problem import (
    JointProblem,
    TwoObjectives,
    cast_problem,
    with_target,
)
from advkit.attacks.engine.base import move_outward
from advkit.attacks.engine.black_box import warn_of_random_labels
from advkit.attacks.engine.box_adam import BoxAdam
from advkit.attacks.engine.constant_search import TUNING as SEARCH
from advkit.attacks.engine.constant_search import Bracket, PenaltyState, warm_start
from advkit.attacks.engine.minimum_norm import candidates
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Best, Nearest
from advkit.attacks.engine.rows import choose, select, update_rows
from advkit.attacks.engine.schedules import SCHEDULES, Schedule
from advkit.core import checks
from advkit.core.losses import margin
from advkit.core.norms import Norm, lp_norm, per_sample
from advkit.core.tensors import at_least_float32


@dataclass(frozen=True)
class Tuning:
    """Constants of the search. Those named `published` are from the article on MRR."""

    initial_factor: float = 4.0  # first constants, relative to those that a linear detector needs
    halvings: int = 10  # of the bisection of a success
    first_fraction: float = 0.9  # of the way to a success, before the bisection halves it
    steps_per_class: int = 2  # search steps for each class, before the best class is chosen
    published_const: float = 1e-3  # first constant of the class
    published_ratio: float = 1000.0  # constant of the detector to the first one of the class


TUNING = Tuning()


class _Residual(NamedTuple):
    """Residual of the penalty at the best iterate of each sample of a batch in a search step."""

    total: Tensor  # (N,), weighted sum of the terms
    terms: Tensor  # (N, 2), hinges of class and detector

    def update(self, rows: Tensor, terms: Tensor, total: Tensor) -> None:
        """Keep the smaller residual of each sample, in place."""
        terms, total = terms.to(self.terms), total.to(self.total)
        less = total < self.total[rows]
        self.total[rows[less]], self.terms[rows[less]] = total[less], terms[less]


@dataclass(frozen=True)
class _PenaltyProblem(JointProblem):
    """Joint problem that maximizes minus the weighted hinges of the class and of the detector."""

    detector_confidence: float
    weight: Tensor  # (N, 2), for the whole batch
    residual: _Residual

    def _value(self, x_adv: Tensor, logits: Tensor, margins: Tensor) -> Tensor:
        of_class = (self.goal.confidence - self.goal.objective(margin, logits)).clamp_min(0)
        of_detector = (margins + self.detector_confidence).clamp_min(0).sum(1)
        terms = torch.stack([of_class, of_detector.to(of_class)], 1)
        total = (self.weight[self.rows].to(terms) * terms).sum(1)
        self.residual.update(self.rows, terms.detach(), total.detach())
        return -total


class _SearchState(NamedTuple):
    """Class that each sample aims at, and its two constants, each with its bracket."""

    target_class: Tensor  # (n,)
    expected_distance: Tensor  # (n,), in widths of the box
    const: Tensor  # (n, 2), of class and detector
    low: Tensor  # (n, 2)
    high: Tensor  # (n, 2)
    residual: Tensor  # (n,), of the best iterate

    def updated(self, success: Tensor, positive: Tensor, free: Tensor) -> _SearchState:
        """Return the state with the constants of the next search step.

        Args:
            success: samples for which the constants led to a success, bool `(n,)`.
            positive: terms that are above zero at the best iterate, bool `(n, 2)`.
            free: constants that are searched for, bool `(2,)`.
        """
        lowered = success[:, None] & free
        raised = ~success[:, None] & positive & free
        bracket = Bracket(self.const, self.low, self.high).narrowed(lowered, raised)
        if free.all():  # the smallest constant that succeeds depends on the other constant
            empty = raised & (bracket.low > SEARCH.same_ratio * bracket.high)
            bracket = bracket._replace(high=torch.where(empty, math.inf, bracket.high))
        const = torch.where(lowered | raised, bracket.next(), self.const)
        return self._replace(const=const, low=bracket.low, high=bracket.high)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class JointCarliniWagner(GuardedAttack):
    """Carlini and Wagner's attack in l2 on a guarded model (2017, arXiv:1705.07263).

    Minimizes |x_adv - x|^2 + c1 * max(confidence - margin, 0)
    + c2 * sum of max(margin_over_threshold + detector_confidence, 0) by Adam over the box, where
    the sum is over the parts of the detector. With losses of this form Carlini and Wagner broke
    detectors, and MagNet (2017, arXiv:1711.08478). Both margins are those of the class that a
    sample aims at. The labels of the guard decide about success. A rejection is not a success, and
    a failure returns the clean input.

    Each sample has two constants of its own, c1 and c2. A search step that fails increases those
    whose term is positive at its best iterate. A success decreases both. The first search steps aim
    at the likeliest classes one after another from the input, and the later ones begin at the
    nearest success. A success is moved towards the input as far as it remains a success.

    Deviations from the papers:

    - Those of `CarliniWagnerL2`, which has the same optimizer.
    - Both constants are searched for. The paper has one, and the article on MRR searches for one
      and leaves the other at 1.
    - With `start_images` the search can begin at a clean image.

    `schedule="published"` is the attack of the article on MRR, for comparison. It is weak, because
    the constant of the detector never increases.

    Args:
        confidence: margin in logits that a success of the model must have, not negative.
        detector_confidence: distance below their thresholds to which the parts of the detector are
            optimized, in the units of `margin_over_threshold`, not negative. A success does not
            need it.
        candidates: greatest number of classes to aim at, the likeliest first. A targeted attack and
            the published schedule ignore it.
        search_steps: number of search steps, each with other constants or another class.
        steps: steps of Adam for each search step; each costs one forward and one backward pass
            through model and detector.
        lr: learning rate of Adam; `None` takes one that follows from the expected distance, and
            0.01 in the published schedule.
        initial_const: first value of both constants, for inputs scaled to [0, 1]; `None` takes what
            linear logits and margins need. In the published schedule it is the constant of the
            class, 0.001 by default, and that of the detector is 1000 times as large.
        start_images: clean images `(m, *features)` of several classes that the attacker has, or
            `None`. The nearest of them that the guard accepts with another label, or with the
            target, is moved towards the input as a first success, which a search from the input
            may not find. The pass over these images is not counted in `queries`.
        schedule: `"adaptive"`, or `"published"` for the schedule of the article on MRR. To
            reproduce the article, also pass `search_steps=20, steps=10_000`.
        progress: show a progress bar (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range, or `start_images` or `detector_confidence` is given
            with `schedule="published"`.
        TypeError: a value has the wrong type, or the detector of the guard at the call is not a
            `DifferentiableDetector`.

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
                "`start_images` and `detector_confidence` must not be given with "
                "schedule='published', which has neither. Leave them out."
            )

    def _empty_record(self, problem: Problem) -> Nearest:
        return Nearest.empty(problem.x)

    def _total_steps(self, problem: Problem) -> int:
        return self.search_steps * self.steps

    def _search(self, problem: Problem) -> Nearest:
        ones = at_least_float32(problem.x).new_ones(len(problem.x), 2)
        weight, residual = _initial_residual(problem, ones)
        joint = self._joint(
            _PenaltyProblem,
            problem,
            goal=replace(problem.goal, confidence=self.confidence),
            detector_confidence=self.detector_confidence,
            weight=weight,
            residual=residual,
        )
        nearest = self._empty_record(joint)
        at = joint.evaluate_clean(nearest)
        rows = (~nearest.success).nonzero().flatten()
        if len(rows):
            search = self._search_published if self.schedule == "published" else self._search_both
            update_rows(nearest, rows, search(joint.select(rows), at.select(rows)))
        return nearest

    def _search_published(self, joint: _PenaltyProblem, at: Iterate) -> Nearest:
        """Search from the input in every search step, with the constant of the detector fixed."""
        nearest = Nearest.empty(joint.x)
        first = self.initial_const or TUNING.published_const
        const = at_least_float32(joint.x).new_tensor([first, TUNING.published_ratio * first])
        const = const.expand(len(joint.x), 2)
        state = _initial_state(joint.goal.labels, torch.ones_like(nearest.distance), const)
        free = torch.tensor([True, False], device=const.device)
        for _ in range(self.search_steps):
            found, _ = self._descend(joint, state.const, joint.x, state.expected_distance)
            nearest = nearest.nearer(found)
            state = state.updated(found.success, torch.ones_like(const, dtype=torch.bool), free)
        return nearest

    def _search_both(self, joint: _PenaltyProblem, at: Iterate) -> Nearest:
        """Aim at one class after another from the input, then continue from the nearest success."""
        nearest, state, search_steps = self._search_classes(joint, at)
        nearest, state = self._from_start_images(joint, nearest, state)
        for _ in range(search_steps):
            nearest, state = self._search_step(joint, nearest, state)
        return nearest

    def _search_classes(
        self, joint: _PenaltyProblem, at: Iterate
    ) -> tuple[Nearest, _SearchState, int]:
        """Search for each of the likeliest classes.

        Returns:
            The nearest successes, the state of the best class of each sample, and the number of
            search steps that are left.
        """
        candidate_classes = candidates(at, joint.goal, min(self.candidates, self.search_steps))
        classes = candidate_classes or [joint.goal.labels]
        each = max(1, min(TUNING.steps_per_class, self.search_steps // len(classes)))
        nearest = Nearest.empty(joint.x)
        ones = at_least_float32(joint.x).new_ones(len(joint.x), 2)
        state = _initial_state(classes[0], ones[:, 0], ones)
        for target_class in classes:
            found = Nearest.empty(joint.x)
            tried = self._linear_state(with_target(joint, target_class))
            for _ in range(each):
                found, tried = self._search_step(joint, found, tried)
            better = found.distance < nearest.distance
            better |= ~found.success & ~nearest.success & (tried.residual < state.residual)
            state = _SearchState(*choose(better, tried, state))
            nearest = nearest.nearer(found)
        return nearest, state, self.search_steps - each * len(classes)

    def _search_step(
        self, joint: _PenaltyProblem, nearest: Nearest, state: _SearchState
    ) -> tuple[Nearest, _SearchState]:
        """Run one search step, from the nearest successes or the inputs."""
        part = with_target(joint, state.target_class)
        lower, upper = part.model.bounds
        widening = torch.where((state.low > 0).any(1), SEARCH.widening, 1)
        from_input = widening * state.expected_distance
        from_success = SEARCH.warm_distance * nearest.distance.to(from_input) / (upper - lower)
        distance = torch.where(nearest.success, from_success, from_input)
        found, residual = self._descend(part, state.const, warm_start(part, nearest), distance)
        free = torch.ones(2, dtype=torch.bool, device=part.x.device)
        state = state.updated(found.success, residual.terms > 0, free)
        nearest = nearest.nearer(bisect_to_boundary(part, found, TUNING.halvings))
        return nearest, state._replace(residual=residual.total)

    def _from_start_images(
        self, joint: _PenaltyProblem, nearest: Nearest, state: _SearchState
    ) -> tuple[Nearest, _SearchState]:
        """Return both with the nearest accepted start images, moved towards the inputs."""
        clean = self._accepted_images(joint)
        if clean is None:
            return nearest, state
        points = (joint.x.flatten(1), clean.x.flatten(1))
        for index, exists in nearest_clean(clean, joint.goal, *points, max_images=1):
            rows = exists.nonzero().flatten()
            chosen = index[rows]
            part = with_target(joint.select(rows), clean.labels[chosen])
            at = part.forward(clean.x[chosen], differentiate=False)
            found = Nearest.empty(part.x).improved(part, at)
            found = bisect_to_boundary(part, found, TUNING.halvings)
            better = found.distance < nearest.distance[rows]
            if better.any():
                update_rows(state, rows[better], self._linear_state(part.select(better)))
                update_rows(nearest, rows[better], select(found, better))
        return nearest, state

    def _descend(
        self, joint: _PenaltyProblem, const: Tensor, start: Tensor, expected_distance: Tensor
    ) -> tuple[Nearest, _Residual]:
        """Return the nearest successes of one descent from `start`, and the residual."""
        weight, residual = _initial_residual(joint, const)
        part = replace(joint, weight=weight, residual=residual)
        one = torch.ones_like(expected_distance)
        adam = BoxAdam(steps=self.steps, lr=self.lr, published=self.schedule == "published")
        penalty = PenaltyState(one, torch.zeros_like(one), expected_distance)
        found = adam.descend(part, start, penalty)
        return found, select(residual, joint.rows)

    def _linear_state(self, part: _PenaltyProblem) -> _SearchState:
        """Return the constants that linear logits and margins need; 1 without a gradient."""
        both = cast_problem(TwoObjectives, part, guarded=part.guarded)
        at = both.forward(both.x, differentiate=True)
        of_class, of_detector = both.gradients(at)
        lower, upper = part.model.bounds
        grads = (both.mask_invalid(of_class), of_detector)
        norms = [lp_norm(at_least_float32(grad), "l2") for grad in grads]
        slope = (upper - lower) * torch.stack(norms, 1)
        confidence = at.value.new_tensor([self.confidence, self.detector_confidence])
        gap = at.value.detach().neg() + confidence
        steep = (slope > 0) & slope.isfinite()
        distance = torch.where(steep, gap.clamp_min(0).to(slope) / slope, 0).amax(1)
        distance = torch.where(distance > 0, distance, 1).clamp_max(math.sqrt(part.x[0].numel()))
        const = torch.where(steep, TUNING.initial_factor * distance[:, None] / slope, 1)
        const = const.clamp_max(SEARCH.max_const)
        if self.initial_const is not None:
            const = torch.full_like(const, self.initial_const)
        return _initial_state(part.goal.labels, distance, const)

    def _verify(self, problem: Problem, found: Best | Nearest) -> Best:
        verified = Best(found.x_adv, problem.violation(found.x_adv))
        last = move_outward(problem, found, verified)
        warn_of_random_labels(found, last)
        x_adv = torch.where(per_sample(last.success, last.x_adv), last.x_adv, problem.x)
        return Best(x_adv, last.violation)


def _initial_state(target_class: Tensor, distance: Tensor, const: Tensor) -> _SearchState:
    return _SearchState(
        target_class=target_class,
        expected_distance=distance,
        const=const.clone(),
        low=torch.zeros_like(const),
        high=torch.full_like(const, math.inf),
        residual=torch.full_like(distance, math.inf),
    )


def _initial_residual(problem: Problem, const: Tensor) -> tuple[Tensor, _Residual]:
    """Return the constants `(n, 2)` of a part, expanded to the whole batch, and its residual."""
    weight = const.new_ones(problem.statistics.n, 2).index_put((problem.rows,), const)
    return weight, _Residual(torch.full_like(weight[:, 0], math.inf), torch.zeros_like(weight))


def bisect_to_boundary(problem: JointProblem, nearest: Nearest, halvings: int) -> Nearest:
    """Move each success towards its input by bisection, as far as it remains a success.

    Returns:
        `nearest`, updated in place.
    """
    rows = nearest.success.nonzero().flatten()
    if not len(rows):
        return nearest
    part, best = problem.select(rows), select(nearest, rows)
    span = best.x_adv - part.x
    low, high = torch.zeros_like(best.distance), torch.ones_like(best.distance)
    fraction = TUNING.first_fraction * high
    for _ in range(halvings):
        x_adv = part.clip(part.x + per_sample(fraction, span) * span)
        at = part.forward(x_adv, differentiate=False)
        best = best.improved(part, at)
        low, high = torch.where(at.success, low, fraction), torch.where(at.success, fraction, high)
        fraction = (low + high) / 2
    update_rows(nearest, rows, best)
    return nearest
