"""Auto-PGD: projected gradient descent that adapts its step sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from advkit.attacks.engine.budget import BALLS, BudgetAttack
from advkit.attacks.engine.loop import Stop, iterate
from advkit.attacks.engine.minimum_norm import candidates
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Best
from advkit.attacks.engine.rounding import warn_of_lost_budget
from advkit.attacks.engine.rows import choose
from advkit.attacks.engine.runs import strongest_of_runs
from advkit.core import checks
from advkit.core.box_projections import project_onto_l1_ball_and_box
from advkit.core.losses import CandidateLoss, loss_toward
from advkit.core.norms import Norm, largest_first, normalize, per_sample
from advkit.core.randomness import normal, sample_keys, uniform
from advkit.core.tensors import at_least_float32


@dataclass(frozen=True)
class Tuning:
    """Constants of the papers: arXiv:2003.01690, section 3, and for l1 arXiv:2103.01208, 3.2."""

    first_step: float = 2.0  # multiple of eps, in linf and l2
    step_weight: float = 0.75  # of a step; the move before it has the rest
    first_period: float = 0.22  # share of the steps up to the first checkpoint
    period_decrease: float = 0.03  # from checkpoint to checkpoint
    min_period: float = 0.06
    min_increases: float = 0.75  # share of the steps of a period that must increase the loss
    first_step_l1: float = 1.0
    min_step_l1: float = 0.1
    step_decrease_l1: float = 1.5
    period_l1: float = 0.04
    sparsity_factor: float = 1.5  # a step changes 1 / 1.5 of as many features as the best iterate
    max_sparsity_ratio: float = 0.95  # of a sparser iterate, with which long steps begin again
    radii_l1: tuple[tuple[float, float], ...] = ((0.3, 3), (0.3, 2), (0.4, 1))  # share, radius


TUNING = Tuning()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class APGD(BudgetAttack):
    """Auto-PGD (Croce and Hein, 2020, arXiv:2003.01690; 2021, arXiv:2103.01208, for l1).

    Projected gradient descent with momentum that needs no step size. At checkpoints, a sample whose
    loss no longer increases gets half the step size and continues from its iterate of greatest
    loss. In l1 a step changes the features of largest gradient, whose number follows the sparsity
    of the best iterate. The ball has three times the radius in the first 30 % of the steps, twice
    the radius in the next 30 %, and iterates outside of the ball of radius `eps` are never results.

    With `candidates` the attack aims at the likeliest other classes, one after another. With
    `loss="dlr"` this is the targeted attack APGD-T of AutoAttack. Any misclassification is a
    success.

    Deviations from the papers and the authors' code:

    - The cross-entropy is in log-odds (see `advkit.core.losses`), whose gradient has the same
      direction and does not vanish where the net is confident.
    - A sample is finished at its first success within `eps` and costs no further passes, unless
      `stop` is `"never"`. The authors run all steps.
    - The strongest iterate is the one with the largest margin. The authors return the clean input
      for a failure.
    - Steps that increase the loss are counted from the first step on, as in the paper. The code
      compares the first loss with zero.

    Args:
        eps: radius of the ball, in input units, not negative; a float, or `(n,)` with one radius
            for each sample.
        norm: `"linf"`, `"l2"` or `"l1"`.
        loss: loss to maximize: `"ce"`, `"margin"`, `"dlr"` or a callable `(logits, y) -> (n,)`. DLR
            needs three classes, and four with `candidates` or a target.
        steps: gradient steps of a run; each costs one forward and one backward pass.
        restarts: independent runs from other random points, for each class to aim at.
        candidates: greatest number of classes to aim at; `None` aims at no class. A targeted attack
            ignores it.
        gradient_samples: passes over which each gradient is averaged, for random models
            (expectation over transformation).
        stop: `"first"` ends at the first misclassification of a sample, `"never"` runs all steps
            and returns the iterate of largest margin. `None` lets the caller choose; a direct call
            and an evaluation choose `"first"`.
        seed: seed of the random starts, an int. The start of a sample does not depend on the rest
            of its batch, and its result only as far as the net rounds differently.
        progress: show a progress bar (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.

    Example:
        >>> import torch
        >>> from advkit import attacks
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
        >>> result = attacks.APGD(eps=0.5, norm="l2", loss="dlr", candidates=3).run(net, x, y)
        >>> bool((result.distance <= 0.5 + 1e-6).all())
        True
    """

    norm: Norm = "linf"
    steps: int = 100
    restarts: int = 1
    candidates: int | None = None
    gradient_samples: int = 1
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("norm", self.norm, BALLS)
        for name in ("steps", "restarts", "gradient_samples"):
            checks.integer(name, getattr(self, name), at_least=1)
        if self.candidates is not None:
            checks.integer("candidates", self.candidates, at_least=1)
        checks.integer("seed", self.seed)
        checks.boolean("progress", self.progress)

    def _ascent(self, eps: Tensor) -> _AdaptiveAscent:
        climb = _ClimbL1 if self.norm == "l1" else _Climb
        return _AdaptiveAscent(
            eps=eps,
            phases=_phases(self.steps) if self.norm == "l1" else [(1.0, self.steps)],
            climb=partial(climb, gradient_samples=self.gradient_samples),
            restarts=self.restarts,
            max_classes=self.candidates,
            toward=loss_toward(self.loss),
            seed=self.seed,
            stop=self._stop,
        )

    def _total_steps(self, problem: Problem) -> int:
        return self.restarts * self.steps * (self.candidates or 1)


@dataclass(frozen=True, kw_only=True)
class _AdaptiveAscent:
    """Runs from random points, each for one class to aim at and in one or more phases.

    Attributes:
        eps: radius for each sample, `(n,)`.
        phases: multiple of `eps` and number of steps of each phase; the last multiple is 1.
        climb: constructor of the steps of a phase from its radii and number of steps.
        restarts: number of runs for each class.
        max_classes: greatest number of classes to aim at, `None` to aim at no class.
        toward: objective with a class to aim at.
        seed: seed of the random starts.
        stop: `"first"` if a successful sample is finished, else `"never"`.
    """

    eps: Tensor
    phases: list[tuple[float, int]]
    climb: Callable[..., _Climb]
    restarts: int
    max_classes: int | None
    toward: CandidateLoss
    seed: int
    stop: Stop

    def search(self, problem: Problem) -> Best:
        """Return the strongest iterates of all runs."""
        warn_of_lost_budget(problem, self.eps)
        best = Best.unevaluated(problem.x)
        at = problem.evaluate_clean(best)
        classes: list[Tensor | None] = [None]
        if self.max_classes is not None:
            classes = [*candidates(at, problem.goal, self.max_classes)] or classes

        def run(i: int, part: Problem) -> Best:
            candidate = classes[i // self.restarts]
            aimed = None if candidate is None else candidate[part.rows]
            return self._run(part.with_candidate(aimed, self.toward), i)

        return strongest_of_runs(problem, best, len(classes) * self.restarts, run, self.stop)

    def _run(self, problem: Problem, i: int) -> Best:
        """Return the strongest iterates of one run, which are those of its last phase."""
        eps = self.eps[problem.rows]
        at = _random_start(problem, eps, self.seed, i)
        for multiple, steps in self.phases[:-1]:
            climb = self.climb(eps=multiple * eps, steps=steps)
            at = climb.ascend(problem.unrecorded(), at, _Highest.empty(problem.x)).x_adv
        climb = self.climb(eps=eps, steps=self.phases[-1][1])
        finished = _succeeded if self.stop == "first" else None
        return climb.ascend(problem, at, Best.unevaluated(problem.x), finished)


class _Highest(NamedTuple):
    """Iterate of greatest objective of each sample."""

    x_adv: Tensor  # (n, *features)
    value: Tensor  # (n,)

    @staticmethod
    def empty(x: Tensor) -> _Highest:
        """Return a record of the inputs `x` with the objective minus infinity."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        return _Highest(x.clone(), x.new_full((len(x),), -math.inf, dtype=dtype))

    def improved(self, problem: Problem, at: Iterate) -> _Highest:
        """Return the iterates of greater objective."""
        value = at.value.detach().to(self.value.dtype)
        return _Highest(*choose(value > self.value, (at.x_adv, value), self))


Kept = TypeVar("Kept", Best, _Highest)


class _State(NamedTuple):
    """State of each sample between steps."""

    eps: Tensor  # (n,), radius of the ball
    step_size: Tensor  # (n,)
    before: Tensor  # (n, *features), the point from which the last step was made
    best: Tensor  # (n, *features), the iterate of greatest objective
    best_grad: Tensor  # (n, *features)
    best_value: Tensor  # (n,)
    value: Tensor  # (n,), objective of the last iterate
    increases: Tensor  # (n,), steps since the last checkpoint that increased the objective
    checked_value: Tensor  # (n,), best value at the last checkpoint
    reduced: Tensor  # bool (n,), whether the last checkpoint reduced the step size
    changed: Tensor  # (n,), features that differ from the clean input, at the last checkpoint


@dataclass(frozen=True, kw_only=True)
class _Climb:
    """Steps in linf and l2 in balls of radius `eps` `(n,)`."""

    eps: Tensor
    steps: int
    gradient_samples: int

    def ascend(
        self,
        problem: Problem,
        start: Tensor,
        record: Kept,
        finished: Callable[[Iterate, _State], Tensor] | None = None,
    ) -> Kept:
        """Return `record` after all steps from `start`, projected onto the balls and the box."""
        start = self._project(problem, start, self.eps)
        return iterate(
            problem,
            start,
            self._initial_state(problem, start),
            partial(self._step, self._checkpoints()),
            steps=self.steps,
            best=record,
            finished=finished,
        )

    def _initial_state(self, problem: Problem, start: Tensor) -> _State:
        value = torch.full_like(at_least_float32(self.eps), math.inf)
        return _State(
            eps=self.eps,
            step_size=self._first_step * self.eps,
            before=start,
            best=start,
            best_grad=torch.zeros_like(start),
            best_value=-value,
            value=value,
            increases=torch.zeros_like(value),
            checked_value=-value,
            reduced=torch.ones_like(value, dtype=torch.bool),
            changed=_count_changed(start - problem.x),
        )

    def _step(
        self, checkpoints: dict[int, int], i: int, problem: Problem, at: Iterate, state: _State
    ) -> tuple[Tensor, _State]:
        x_adv, grad = at.x_adv, self._gradient(problem, at)
        value = at.value.detach().to(state.value.dtype)
        better = value > state.best_value
        kept = choose(better, (x_adv, grad, value), (state.best, state.best_grad, state.best_value))
        state = state._replace(
            best=kept[0],
            best_grad=kept[1],
            best_value=kept[2],
            value=value,
            increases=state.increases + (value > state.value),
        )
        if i in checkpoints:
            restored, state = self._check(problem, checkpoints[i], state)
            x_adv, grad = choose(restored, (state.best, state.best_grad), (x_adv, grad))
        return self._move(i, problem, x_adv, grad, state), state._replace(before=x_adv)

    def _gradient(self, problem: Problem, at: Iterate) -> Tensor:
        """Return the gradient at `at`, the mean of several passes for random models."""
        grad = problem.ascent_direction(at)
        for _ in range(self.gradient_samples - 1):
            again = problem.forward(at.x_adv, differentiate=True)
            grad = grad + problem.ascent_direction(again)
        return grad

    @property
    def _first_step(self) -> float:
        return TUNING.first_step

    def _checkpoints(self) -> dict[int, int]:
        """Return the steps before which the progress is checked, with the length of the period."""
        period, shortest, decrease = (
            max(int(share * self.steps), 1)
            for share in (TUNING.first_period, TUNING.min_period, TUNING.period_decrease)
        )
        checkpoints, at = {}, period
        while at < self.steps:
            checkpoints[at] = period
            period = max(period - decrease, shortest)
            at += period
        return checkpoints

    def _check(self, problem: Problem, period: int, state: _State) -> tuple[Tensor, _State]:
        """Return which samples go back to their best iterate, and the state after a checkpoint."""
        few = state.increases <= TUNING.min_increases * period
        stuck = ~state.reduced & (state.best_value <= state.checked_value)
        reduced = few | stuck
        return reduced, state._replace(
            step_size=torch.where(reduced, state.step_size / 2, state.step_size),
            increases=torch.zeros_like(state.increases),
            checked_value=state.best_value,
            reduced=reduced,
        )

    def _move(self, i: int, problem: Problem, x_adv: Tensor, grad: Tensor, state: _State) -> Tensor:
        """Return the next iterates: a step along `grad`, averaged with the move before it."""
        direction = grad.sign() if problem.norm == "linf" else normalize(grad, "l2")
        step = direction * per_sample(state.step_size.to(grad.dtype), grad)
        moved = self._project(problem, x_adv + step, state.eps)
        if i == 0:
            return moved
        weight = TUNING.step_weight
        mean = x_adv + (moved - x_adv) * weight + (x_adv - state.before) * (1 - weight)
        return self._project(problem, mean, state.eps)

    def _project(self, problem: Problem, x_adv: Tensor, eps: Tensor) -> Tensor:
        """Return `x_adv` within the balls and the box; `x_adv` may be overwritten."""
        return problem.project_to_ball(x_adv, eps)


class _ClimbL1(_Climb):
    """Steps in l1, which change few features."""

    @property
    def _first_step(self) -> float:
        return TUNING.first_step_l1

    def _checkpoints(self) -> dict[int, int]:
        period = max(int(TUNING.period_l1 * self.steps), 1)
        return dict.fromkeys(range(period, self.steps, period), period)

    def _check(self, problem: Problem, period: int, state: _State) -> tuple[Tensor, _State]:
        changed = _count_changed(state.best - problem.x)
        sparser = changed < TUNING.max_sparsity_ratio * state.changed
        longest = TUNING.first_step_l1 * state.eps
        shorter = torch.maximum(
            state.step_size / TUNING.step_decrease_l1, TUNING.min_step_l1 * longest
        )
        step_size = torch.where(sparser, longest, shorter)
        return sparser, state._replace(step_size=step_size, changed=changed)

    def _move(self, i: int, problem: Problem, x_adv: Tensor, grad: Tensor, state: _State) -> Tensor:
        """Return the next iterates: all features of largest gradient change by the same amount."""
        size = grad.abs().flatten(1)
        count = (state.changed / TUNING.sparsity_factor).ceil().long().clamp(1, size.shape[1])
        order, _ = largest_first(size, lambda top, _: count <= top.shape[1])
        smallest = order.gather(1, count[:, None] - 1)
        sign = torch.where(size >= smallest, grad.flatten(1).sign(), 0)
        length = state.step_size.to(grad.dtype) / sign.abs().sum(1).clamp_min(1)
        return self._project(problem, x_adv + (sign * length[:, None]).view_as(grad), state.eps)

    def _project(self, problem: Problem, x_adv: Tensor, eps: Tensor) -> Tensor:
        delta = at_least_float32(x_adv) - problem.x
        delta = project_onto_l1_ball_and_box(delta, problem.x, eps, problem.model.bounds)
        return problem.clip(problem.x + delta)


def _phases(steps: int) -> list[tuple[float, int]]:
    """Return the phases in l1: multiple of the radius and number of steps, all in all `steps`."""
    phases: list[tuple[float, int]] = []
    for share, radius in TUNING.radii_l1[:-1]:
        used = sum(taken for _, taken in phases)
        phases.append((radius, min(math.ceil(share * steps), steps - used - 1)))
    last = steps - sum(taken for _, taken in phases)
    return [*((r, taken) for r, taken in phases if taken > 0), (TUNING.radii_l1[-1][1], last)]


def _random_start(problem: Problem, eps: Tensor, seed: int, i: int) -> Tensor:
    """Return the start `(n, *features)` of run `i`, which is still to be projected.

    It is on the sphere in l2 and at a face of the ball in linf. In l1 it is a Gaussian with the
    width of the box.
    """
    x, bounds = problem.x, problem.model.bounds
    keys, d = sample_keys(x, bounds, seed, i), math.prod(x.shape[1:])
    if problem.norm == "linf":
        noise = normalize(2 * uniform(keys, d, x.dtype) - 1, "linf") * eps[:, None]
    elif problem.norm == "l2":
        noise = normalize(normal(keys, d, x.dtype), "l2") * eps[:, None]
    else:
        noise = normal(keys, d, x.dtype) * (bounds[1] - bounds[0])
    return x + noise.to(x.dtype).view_as(x)


def _count_changed(delta: Tensor) -> Tensor:
    """Return the number of nonzero features of `delta`, `(n,)`."""
    return delta.count_nonzero(dim=tuple(range(1, delta.ndim))).float()


def _succeeded(at: Iterate, _: _State) -> Tensor:
    return at.success
