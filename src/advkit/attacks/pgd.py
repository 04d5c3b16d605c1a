"""Projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from advkit.attacks.engine.budget import BALLS, BudgetAttack, check_restarts, check_step_size
from advkit.attacks.engine.problem import Problem
from advkit.attacks.engine.steepest_ascent import Ascent, step_schedule, wide_start
from advkit.core import checks
from advkit.core.norms import Norm


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PGD(BudgetAttack):
    """Projected gradient descent on the model's margin (Madry et al., 2018, arXiv:1706.06083).

    From a random point, `steps` steps of steepest ascent, each followed by the Euclidean projection
    onto the ball and the clip to the bounds. With `momentum` this is MI-FGSM (Dong et al., 2018,
    arXiv:1710.06081). A step in l1 moves the features of largest gradient to their bounds, one
    after another, until it has its length (Croce and Hein, 2021, arXiv:2103.01208).

    Deviations from the paper:

    - The steps shrink linearly from `eps` to `eps / steps`. On the nets of the documentation this
      is stronger than the usual 2.5 * eps / steps and needs fewer passes. `step_size` sets the
      constant step of the paper.
    - In l2 and l1 a random start is wide. It is drawn from the ball of 8 * eps (24 * eps in l1) and
      clipped to the bounds. In the first 30 % of the steps, at most eight, the radius of the ball
      shrinks linearly from 4 * eps, and the steps are longer by the same factor. These iterates are
      never results. They find examples that the loss does not point to near the input, see "Where
      gradients of the loss mislead" in docs/results.md. With `step_size` no start is wide.
    - The loss is the cross-entropy in log-odds (see `advkit.core.losses`), whose gradient has the
      same direction.
    - The result is the strongest of all iterates in the ball, including the first and the last one.

    Args:
        eps: radius of the ball, in input units, not negative; a float, or `(n,)` with one radius
            for each sample.
        norm: `"linf"`, `"l2"` or `"l1"`.
        steps: gradient steps; each costs one forward and one backward pass.
        step_size: length of every step, in input units; `None` for shrinking steps and, in l2 and
            l1, a wide start.
        restarts: independent runs from other random points. With `stop="first"` each
            runs on the samples without a success so far, with `"never"` on all samples.
        random_start: begin at a point drawn uniformly from the volume of a ball; `False` begins at
            the clean input.
        momentum: weight of the previous direction, 0 for none; MI-FGSM has 1.
        loss: loss to maximize: `"ce"`, `"margin"`, `"dlr"` or a callable `(logits, y) -> (n,)`.
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
        >>> result = attacks.PGD(eps=0.1, steps=10).run(net, x, y)
        >>> bool((result.distance <= 0.1 + 1e-6).all())
        True
    """

    norm: Norm = "linf"
    steps: int = 40
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    momentum: float = 0.0
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("norm", self.norm, BALLS)
        checks.integer("steps", self.steps, at_least=1)
        check_step_size(self.step_size)
        check_restarts(self.restarts, self.random_start)
        checks.not_negative("momentum", self.momentum)
        checks.integer("seed", self.seed)
        checks.boolean("progress", self.progress)

    def _ascent(self, eps: Tensor) -> Ascent:
        wide = self.random_start and self.step_size is None
        start_radius, wide_radii = wide_start(self.norm, self.steps) if wide else (1.0, ())
        return Ascent(
            eps=eps,
            start_radius=start_radius,
            wide_radii=wide_radii,
            step_sizes=step_schedule(eps, self.steps, self.step_size),
            momentum=self.momentum,
            random_start=self.random_start,
            restarts=self.restarts,
            seed=self.seed,
            stop=self._stop,
        )

    def _total_steps(self, problem: Problem) -> int:
        return self.restarts * self.steps
