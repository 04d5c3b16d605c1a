"""Projected gradient descent on one of two goals at a time: a wrong class, and no alarm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from advkit.attacks.adaptive.guarded_attack import GuardedAttack, nearest_clean
from advkit.attacks.adaptive.joint_problem import Joint, TwoGoals
from advkit.attacks.engine.budget import BALLS, ascent_loss, check_restarts, check_step_size
from advkit.attacks.engine.loop import Stop
from advkit.attacks.engine.problem import Problem
from advkit.attacks.engine.records import Best
from advkit.attacks.engine.rows import select, update_rows
from advkit.attacks.engine.steepest_ascent import Ascent, step_schedule
from advkit.core import checks
from advkit.core.losses import Loss, LossName, check_loss
from advkit.core.norms import Norm


@dataclass(frozen=True, kw_only=True, repr=False)
class SelectivePGD(GuardedAttack):
    """Attack a model and the detector that guards it, one at a time (arXiv:2106.15023).

    Bryniarski et al. (2021): a sum of two losses goes on with the one that is won already, and so
    past the alarm. Here each step of each sample serves one goal, which needs no weight: the class
    while the model is right, and where it is wrong the parts that raise an alarm. What counts is
    what the guard answers; a rejection is no success.

    On a model without a guard it is PGD.

    Deviations: the parts of the detector count by the sum of what they are above their limits;
    steps shrink as those of `PGD` unless `step_size` sets them; what comes back is the iterate by
    which the worst of all is missed least. In the orthogonal kind a gradient loses its part along
    the other only where the two oppose each other: where they agree, as they do when what looks
    like a class is accepted as one, the paper's projection would take the way itself; and where
    nothing would be left, it loses nothing.

    Args:
        eps: radius of the ball, in input units, not negative; a float, or `(n,)` with one radius
            for each sample.
        norm: `"linf"`, `"l2"` or `"l1"`.
        steps: gradient steps; each costs one forward and one backward pass through model and
            detector, two backward if orthogonal.
        step_size: length of every step, in input units; `None` for steps that shrink linearly from
            `eps` to `eps / steps`.
        kind: `"selective"`, or `"orthogonal"`, whose steps leave the other goal no worse: what
            opposes its gradient is taken off.
        restarts: independent runs from other random points; each takes up what is still unsolved.
        random_start: begin at a random point of the ball; `False` begins at the clean input.
        loss: of the class, to climb: `"margin"`, `"ce"`, `"dlr"` or a callable
            `(logits, y) -> (n,)`.
        stop: `"first"` leaves a sample alone once it is wrong and accepted, `"never"` goes on to
            the iterate that is so by most; `None` leaves it to the caller: `"first"` by itself.
        seed: of the random starts, an int.
        start_images: clean images `(m, *features)` of several classes that the attacker has, or `None`.
            One more run begins at the point of the ball that is nearest to the nearest of them
            that the guard accepts with another label, at the target if there is one. The pass that
            judges them belongs to no sample and is not in `queries`.
        progress: show a bar (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range.
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
        joint = self._joint(TwoGoals, problem, orthogonal=self.kind == "orthogonal")
        eps = checks.radii(self.eps, problem.x)
        ascent = Ascent(
            eps=eps,
            step_sizes=step_schedule(eps, self.steps, self.step_size),
            random_start=self.random_start,
            restarts=self.restarts,
            seed=self.seed,
            stop=self.stop or "first",
        )
        return self._from_natural(joint, ascent, ascent.search(joint))

    def _total_steps(self, problem: Problem) -> int:
        return (self.restarts + (self.start_images is not None)) * self.steps

    def _from_natural(self, joint: Joint, ascent: Ascent, best: Best) -> Best:
        """`best`, or what is better on the way that begins towards an accepted natural image."""
        clean = self._clean(joint)
        todo = ascent.remaining(best)
        if clean is None or not todo.any():
            return best
        part = joint.select(todo)
        places = (part.x.flatten(1), clean.x.flatten(1))
        for index, exists in nearest_clean(clean, part.goal, *places, most=1):
            open_part = part.select(exists)
            found = ascent.search_from(open_part, clean.x[index[exists]])
            better = found.violation < best.violation[open_part.rows]
            update_rows(best, open_part.rows[better], select(found, better))
        return best
