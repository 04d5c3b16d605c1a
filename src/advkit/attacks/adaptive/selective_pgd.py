"""Projected gradient descent on the class loss or on the detector's score, one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from advkit.attacks.adaptive.guarded_attack import GuardedAttack, nearest_clean
from advkit.attacks.adaptive.joint_problem import JointProblem, TwoObjectives
from advkit.attacks.engine.budget import BALLS, ascent_loss, check_restarts, check_step_size
from advkit.attacks.engine.loop import Stop
from advkit.attacks.engine.problem import Problem
from advkit.attacks.engine.records import Best
from advkit.attacks.engine.rows import select, update_rows
from advkit.attacks.engine.runs import remaining_samples
from advkit.attacks.engine.steepest_ascent import Ascent, step_schedule
from advkit.core import checks
from advkit.core.losses import Loss, LossName, check_loss
from advkit.core.norms import Norm


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SelectivePGD(GuardedAttack):
    """Selective and orthogonal PGD on a guarded model (Bryniarski et al., 2021, arXiv:2106.15023).

    A weighted sum of two losses keeps on increasing the one that is already high enough. Here each
    step of each sample follows one objective, so that no weight is needed: the class loss while the
    label is right, and otherwise the margins of the detector's parts over their thresholds. The
    labels of the guard decide about success; a rejection is not a success.

    On a model without a guard it is PGD.

    Deviations from the paper:

    - The objective of the detector is the sum of its parts' positive margins over their thresholds.
    - The steps shrink as those of `PGD`, unless `step_size` is set.
    - The result is the iterate with the smallest violation. The violation is the greatest of that
      of the class and the margins of the parts.
    - With `kind="orthogonal"` a gradient is projected only if it opposes the other one. If the two
      agree, as they do for an image that looks like another class, the projection of the paper
      would remove the common direction. A gradient of which the projection leaves nothing is not
      projected.

    Args:
        eps: radius of the ball, in input units, not negative; a float, or `(n,)` with one radius
            for each sample.
        norm: `"linf"`, `"l2"` or `"l1"`.
        steps: gradient steps; each costs one forward and one backward pass through model and
            detector, two backward if orthogonal.
        step_size: length of every step, in input units; `None` for steps that shrink linearly from
            `eps` to `eps / steps`.
        kind: `"selective"`, or `"orthogonal"`, which removes from each gradient the part that
            opposes the other objective.
        restarts: independent runs from other random points, each for the samples that are not
            solved yet.
        random_start: begin at a random point of the ball; `False` begins at the clean input.
        loss: class loss to maximize: `"margin"`, `"ce"`, `"dlr"` or a callable
            `(logits, y) -> (n,)`.
        stop: `"first"` ends at the first success of a sample, `"never"` runs all steps and returns
            the iterate with the smallest violation. `None` lets the caller choose; a direct call
            and an evaluation choose `"first"`.
        seed: seed of the random starts, an int.
        start_images: clean images `(m, *features)` of several classes that the attacker has, or
            `None`. One more run begins at the point of the ball that is nearest to one of them: the
            nearest image that the guard accepts with another label, or with the target. The pass
            over these images is not counted in `queries`.
        progress: show a progress bar (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range.
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
        >>> guard = Guard(net, Far(), threshold=0.5)
        >>> x, y = torch.tensor([[0.4, 0.4]]), torch.tensor([0])
        >>> guard.predict(attacks.PGD(eps=0.2, steps=9, random_start=False)(guard.model, x, y))
        tensor([-1])
        >>> guard.predict(attacks.SelectivePGD(eps=0.2, steps=9)(guard, x, y))
        tensor([1])
    """

    eps: float | Tensor
    norm: Norm = "linf"
    steps: int = 100
    step_size: float | None = None
    kind: Literal["selective", "orthogonal"] = "selective"
    restarts: int = 1
    random_start: bool = True
    loss: LossName | Loss = "margin"
    stop: Stop | None = None
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.eps(self.eps)
        checks.one_of("norm", self.norm, BALLS)
        checks.integer("steps", self.steps, at_least=1)
        check_step_size(self.step_size)
        checks.one_of("kind", self.kind, ("selective", "orthogonal"))
        check_restarts(self.restarts, self.random_start)
        check_loss(self.loss)
        checks.one_of("stop", self.stop, ("first", "never", None))
        checks.integer("seed", self.seed)
        checks.boolean("progress", self.progress)

    def _ascent_loss(self, *, targeted: bool) -> Loss:
        return ascent_loss(self.loss, targeted=targeted)

    def _search(self, problem: Problem) -> Best:
        joint = self._joint(TwoObjectives, problem, orthogonal=self.kind == "orthogonal")
        eps = checks.radii(self.eps, problem.x)
        ascent = Ascent(
            eps=eps,
            step_sizes=step_schedule(eps, self.steps, self.step_size),
            random_start=self.random_start,
            restarts=self.restarts,
            seed=self.seed,
            stop=self.stop or "first",
        )
        return self._from_start_images(joint, ascent, ascent.search(joint))

    def _total_steps(self, problem: Problem) -> int:
        return (self.restarts + (self.start_images is not None)) * self.steps

    def _from_start_images(self, joint: JointProblem, ascent: Ascent, best: Best) -> Best:
        """Return `best`, improved by a run that begins near the nearest accepted start image."""
        clean = self._accepted_images(joint)
        remaining = remaining_samples(best, ascent.stop)
        if clean is None or not remaining.any():
            return best
        part = joint.select(remaining)
        points = (part.x.flatten(1), clean.x.flatten(1))
        for index, exists in nearest_clean(clean, part.goal, *points, max_images=1):
            with_start = part.select(exists)
            found = ascent.search_from(with_start, clean.x[index[exists]])
            better = found.violation < best.violation[with_start.rows]
            update_rows(best, with_start.rows[better], select(found, better))
        return best
