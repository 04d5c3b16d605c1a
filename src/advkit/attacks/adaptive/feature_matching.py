"""Inputs that look to model and detector like natural images of another class."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from advkit.attacks.adaptive.guarded_attack import GuardedAttack, nearest_clean
from advkit.attacks.adaptive.joint_problem import Joint
from advkit.attacks.engine.budget import BALLS, check_step_size
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Best
from advkit.attacks.engine.rows import select, update_rows
from advkit.attacks.engine.steepest_ascent import Ascent, step_schedule
from advkit.core import checks, sample_rows
from advkit.core.norms import Norm


@dataclass(frozen=True)
class _Seen(Joint):
    """`value` is all that is compared, `(n, width + classes)`: features beside logits."""

    @property
    def is_scale_free(self) -> bool:
        """False: the logits are compared with those of natural images."""
        return False

    def _value(self, x_adv: Tensor, logits: Tensor, excess: Tensor) -> Tensor:
        return torch.cat([self.guarded.features(x_adv).to(logits), logits], 1)


@dataclass(frozen=True)
class _Matching(_Seen):
    """What is climbed is minus the squared distance to what is seen of a guide."""

    guide: Tensor  # (N, width + classes), for the whole batch
    weight: Tensor  # (N, width + classes), of the squares

    def _value(self, x_adv: Tensor, logits: Tensor, excess: Tensor) -> Tensor:
        gap = super()._value(x_adv, logits, excess) - self.guide[self.rows]
        return -(self.weight[self.rows] * gap.square()).sum(1)


@dataclass(frozen=True, kw_only=True, repr=False)
class FeatureMatching(GuardedAttack):
    """Look like a natural image of another class to every part at once (arXiv:1511.05122).

    Sabour et al. (2016): what has the features of a natural image is one to whoever looks at
    features. So no limit of the detector and no gradient of its decision is needed. For each
    sample, some of the nearest natural images that the guard accepts with another label are guides,
    one after another, and what the detector's parts see of the input is drawn to what they see of
    the guide, the logits with it. What counts is what the guard answers; a rejection is no success.

    Deviations: the features of all parts and the logits of the model are matched together, each by
    its squared distance as a share of that at the clean input; there are several guides; each is
    gone for from the clean input, as in the paper, and from the point of the ball that is nearest
    to the guide, so that a ball with the guide in it holds a success; steepest descent within the
    ball in place of L-BFGS with a box.

    Args:
        eps: radius of the ball, in input units, not negative; a float, or `(n,)` with one radius
            for each sample.
        start_images: clean images `(m, *features)` of several classes that the attacker has, within the
            bounds. The pass that judges them belongs to no sample and is not in `queries`.
        norm: `"linf"`, `"l2"` or `"l1"`.
        steps: gradient steps from each start; each costs one forward and one backward pass through
            model and detector.
        step_size: length of every step, in input units; `None` for steps that shrink linearly from
            `eps` to `eps / steps`.
        candidates: guides for each sample, the nearest in features first; in logits if the model
            has no guard. With a target all of them have that label.
        progress: show a bar (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type, `start_images` is missing, or at the call, the guard's
            detector does not show its parts and features.

    Example:
        >>> import torch
        >>> from advkit import attacks
        >>> from advkit.detectors import Guard
        >>> class Far:
        ...     reads_inputs = True
        ...     def anomaly_score(self, x, labels=None):
        ...         return (x[:, 0] - 0.5).abs()
        ...     def margin_over_threshold(self, x, labels, threshold):
        ...         return self.anomaly_score(x)[:, None] - threshold
        ...     def features(self, x):
        ...         return x[:, :1]
        >>> net = torch.nn.Linear(2, 2)
        >>> _ = net.weight.data.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        >>> _ = net.bias.data.copy_(torch.tensor([1.0, 0.0]))
        >>> guard = Guard(net, Far(), threshold=0.1)
        >>> attack = attacks.FeatureMatching(eps=0.3, start_images=torch.tensor([[0.5, 0.9]]), steps=9)
        >>> guard.predict(attack(guard, torch.tensor([[0.5, 0.4]]), torch.tensor([0])))
        tensor([1])
    """

    eps: float | Tensor
    start_images: Tensor = field()  # without the default that the others have
    norm: Norm = "linf"
    steps: int = 100
    step_size: float | None = None
    candidates: int = 3
    progress: bool = False
    _asks: ClassVar[tuple[str, ...]] = ("margin_over_threshold", "features")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start_images is None:
            raise TypeError(
                "`start_images` must be a tensor: FeatureMatching has nothing else to match"
            )
        checks.eps(self.eps)
        checks.one_of("norm", self.norm, BALLS)
        checks.integer("steps", self.steps, at_least=1)
        check_step_size(self.step_size)
        checks.integer("candidates", self.candidates, at_least=1)
        checks.boolean("progress", self.progress)

    def _search(self, problem: Problem) -> Best:
        seen = self._joint(_Seen, problem)
        eps = checks.radii(self.eps, problem.x)
        step_sizes = step_schedule(eps, self.steps, self.step_size)
        ascent = Ascent(eps=eps, step_sizes=step_sizes, stop="first")
        at = seen.forward(seen.x, differentiate=False, first=True)
        best = Best.unevaluated(seen.x).improved(seen, at)
        if not best.success.all():
            self._follow(problem, seen, at, ascent, best)
        return best

    def _total_steps(self, problem: Problem) -> int:
        return 2 * self.candidates * self.steps

    def _follow(
        self, problem: Problem, seen: _Seen, at: Iterate, ascent: Ascent, best: Best
    ) -> None:
        """Go for one guide after another, and write what is better into `best`."""
        clean = self._clean(seen)
        assert clean is not None  # natural is required
        here = at.value
        with sample_rows.unnumbered("the images in start_images"):
            features = seen.guarded.features(clean.x)
        there = torch.cat([features.to(here), clean.logits.to(here)], 1)
        width = here.shape[1] - at.logits.shape[1]
        compared = width or here.shape[1]
        guides = nearest_clean(
            clean, seen.goal, here[:, :compared], there[:, :compared], most=self.candidates
        )
        problem.statistics.no_start |= ~torch.stack([best.success, *(e for _, e in guides)]).any(0)
        problem.statistics.no_start_reported = True  # by `nearest_clean`
        for index, exists in guides:
            guide = there[index]
            weight = _shares(here - guide, width)
            matching = self._joint(_Matching, problem, guide=guide, weight=weight)
            for start in (clean.x[index], problem.x):
                rows = (exists & ~best.success).nonzero().flatten()
                if not len(rows):
                    break
                found = ascent.search_from(matching.select(rows), start[rows])
                better = found.violation < best.violation[rows]
                update_rows(best, rows[better], select(found, better))


def _shares(gap: Tensor, width: int) -> Tensor:
    """Weights `(n, k)` by which the squares of the first `width` of `gap` sum to 1, and the rest.

    Where all of them are zero there is nothing to match, and the weights are 1.
    """
    total = [
        part.square().sum(1, keepdim=True).expand_as(part) for part in gap.tensor_split([width], 1)
    ]
    found = torch.cat(total, 1)
    return torch.where(found > 0, 1 / found, 1)
