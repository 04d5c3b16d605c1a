"""Auto-PGD: projected gradient descent that adapts its step sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from advkit.attacks.engine.adaptive_steps import Climb, ClimbL1, Highest
from advkit.attacks.engine.budget import BALLS, BudgetAttack
from advkit.attacks.engine.loop import Stop, succeeded
from advkit.attacks.engine.minimum_norm import candidates
from advkit.attacks.engine.problem import Problem
from advkit.attacks.engine.records import Best
from advkit.attacks.engine.rounding import warn_of_lost_budget
from advkit.attacks.engine.runs import strongest_of_runs
from advkit.core import checks
from advkit.core.losses import CandidateLoss, loss_toward
from advkit.core.norms import Norm, normalize
from advkit.core.randomness import normal, sample_keys, uniform
from advkit.core.tensors import finite_multiple

# Share of the steps and multiple of `eps` of each phase in l1 (arXiv:2103.01208, section 3.2).
RADII_L1 = ((0.3, 3.0), (0.3, 2.0), (0.4, 1.0))


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
      compares the first loss with zero. At a checkpoint exactly 75 % of such steps are too few, as
      in the code.
    - In l1 all runs begin in the larger balls, as in AutoAttack. A random start there is Gaussian
      with the width of the box as its standard deviation.

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
        climb = ClimbL1 if self.norm == "l1" else Climb
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
        classes = 1 if problem.goal.targeted else self.candidates or 1
        return self.restarts * self.steps * classes


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
    climb: Callable[..., Climb]
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
            climb = self.climb(eps=finite_multiple(eps, multiple), steps=steps)
            at = climb.ascend(problem.unrecorded(), at, Highest.empty(problem.x)).x_adv
        climb = self.climb(eps=eps, steps=self.phases[-1][1])
        finished = succeeded if self.stop == "first" else None
        return climb.ascend(problem, at, Best.unevaluated(problem.x), finished)


def _phases(steps: int) -> list[tuple[float, int]]:
    """Return the phases in l1: multiple of the radius and number of steps, all in all `steps`."""
    phases: list[tuple[float, int]] = []
    for share, radius in RADII_L1[:-1]:
        used = sum(taken for _, taken in phases)
        phases.append((radius, min(math.ceil(share * steps), steps - used - 1)))
    last = steps - sum(taken for _, taken in phases)
    return [*((r, taken) for r, taken in phases if taken > 0), (RADII_L1[-1][1], last)]


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
