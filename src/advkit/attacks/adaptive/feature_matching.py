"""Attack that matches the features of clean images of another class."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from advkit.attacks.adaptive.guarded_attack import GuardedAttack, nearest_clean
from advkit.attacks.adaptive.joint_problem import JointProblem
from advkit.attacks.engine.budget import BALLS, check_step_size
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Best
from advkit.attacks.engine.rows import select, update_rows
from advkit.attacks.engine.steepest_ascent import Ascent, step_schedule
from advkit.core import checks, sample_rows
from advkit.core.norms import Norm


@dataclass(frozen=True)
class _FeatureProblem(JointProblem):
    """Joint problem whose `value` is features and logits side by side, `(n, width + classes)`."""

    @property
    def is_scale_free(self) -> bool:
        """False: the logits are compared with those of clean images."""
        return False

    def _value(self, x_adv: Tensor, logits: Tensor, margins: Tensor) -> Tensor:
        return torch.cat([self.guarded.features(x_adv).to(logits), logits], 1)


@dataclass(frozen=True)
class _MatchingProblem(_FeatureProblem):
    """Joint problem that maximizes minus the weighted squared distance to a guide."""

    guide: Tensor  # (N, width + classes), features and logits of an image, for the whole batch
    weight: Tensor  # (N, width + classes), of the squares

    def _value(self, x_adv: Tensor, logits: Tensor, margins: Tensor) -> Tensor:
        gap = super()._value(x_adv, logits, margins) - self.guide[self.rows]
        return -(self.weight[self.rows] * gap.square()).sum(1)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FeatureMatching(GuardedAttack):
    """Match the features of a clean image of another class (Sabour et al., 2016, arXiv:1511.05122).

    A detector cannot tell an input from a clean image if both have the same features. The attack
    therefore needs neither the thresholds of the detector nor the gradient of its decision. The
    guides of a sample are the nearest clean images that the guard accepts with another label. The
    attack moves the features that the detector reads, and the logits, towards those of one guide
    after another. The labels of the guard decide about success; a rejection is not a success.

    Deviations from the paper:

    - The features of all parts and the logits are matched together. Each of the two counts by its
      squared distance relative to that at the clean input.
    - There are several guides.
    - The search for a guide begins at the clean input, as in the paper, and again at the point of
      the ball that is nearest to the guide. A ball that contains the guide thus has a success.
    - The optimizer is steepest descent within the ball instead of L-BFGS with a box.

    Args:
        eps: radius of the ball, in input units, not negative; a float, or `(n,)` with one radius
            for each sample.
        start_images: clean images `(m, *features)` of several classes that the attacker has, within
            the bounds. The pass over these images is not counted in `queries`.
        norm: `"linf"`, `"l2"` or `"l1"`.
        steps: gradient steps from each start; each costs one forward and one backward pass through
            model and detector.
        step_size: length of every step, in input units; `None` for steps that shrink linearly from
            `eps` to `eps / steps`.
        candidates: greatest number of guides for each sample, the nearest first: in features, or in
            logits if the model has no guard. With a target, all of them have that label.
        progress: show a progress bar (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type, `start_images` is `None`, or the detector of the
            guard at the call is not a `DifferentiableDetector`.

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
        >>> images = torch.tensor([[0.5, 0.9]])
        >>> attack = attacks.FeatureMatching(eps=0.3, start_images=images, steps=9)
        >>> guard.predict(attack(guard, torch.tensor([[0.5, 0.4]]), torch.tensor([0])))
        tensor([1])
    """

    eps: float | Tensor
    start_images: Tensor = field()  # required here
    norm: Norm = "linf"
    steps: int = 100
    step_size: float | None = None
    candidates: int = 3
    progress: bool = False
    _required_methods: ClassVar[tuple[str, ...]] = ("margin_over_threshold", "features")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start_images is None:
            raise TypeError(
                "`start_images` must be a tensor of clean images for FeatureMatching, got None."
            )
        checks.eps(self.eps)
        checks.one_of("norm", self.norm, BALLS)
        checks.integer("steps", self.steps, at_least=1)
        check_step_size(self.step_size)
        checks.integer("candidates", self.candidates, at_least=1)
        checks.boolean("progress", self.progress)

    def _search(self, problem: Problem) -> Best:
        joint = self._joint(_FeatureProblem, problem)
        eps = checks.radii(self.eps, problem.x)
        step_sizes = step_schedule(eps, self.steps, self.step_size)
        ascent = Ascent(eps=eps, step_sizes=step_sizes, stop="first")
        at = joint.forward(joint.x, differentiate=False, first=True)
        best = Best.unevaluated(joint.x).improved(joint, at)
        if not best.success.all():
            self._match_guides(problem, joint, at, ascent, best)
        return best

    def _total_steps(self, problem: Problem) -> int:
        return 2 * self.candidates * self.steps

    def _match_guides(
        self, problem: Problem, joint: _FeatureProblem, at: Iterate, ascent: Ascent, best: Best
    ) -> None:
        """Search near one guide after another, and update `best` in place."""
        clean = self._accepted_images(joint)
        assert clean is not None  # start_images are required
        points = at.value
        with sample_rows.unnumbered("the images in start_images"):
            features = joint.guarded.features(clean.x)
        clean_points = torch.cat([features.to(points), clean.logits.to(points)], 1)
        width = points.shape[1] - at.logits.shape[1]
        compared = slice(width or None)
        guides = nearest_clean(
            clean,
            joint.goal,
            points[:, compared],
            clean_points[:, compared],
            max_images=self.candidates,
        )
        problem.statistics.no_start |= ~torch.stack([best.success, *(e for _, e in guides)]).any(0)
        problem.statistics.no_start_reported = True  # by `nearest_clean`
        for index, exists in guides:
            guide = clean_points[index]
            weight = _weights(points - guide, width)
            matching = self._joint(_MatchingProblem, problem, guide=guide, weight=weight)
            for start in (clean.x[index], problem.x):
                rows = (exists & ~best.success).nonzero().flatten()
                if not len(rows):
                    break
                found = ascent.search_from(matching.select(rows), start[rows])
                better = found.violation < best.violation[rows]
                update_rows(best, rows[better], select(found, better))


def _weights(gap: Tensor, width: int) -> Tensor:
    """Return weights `(n, k)` with which the squares of `gap` sum to 1, features and logits each.

    The first `width` entries of a row are features and the others logits. The weights are 1 for
    those that match already.
    """
    parts = gap.tensor_split([width], 1)
    totals = [part.square().sum(1, keepdim=True).expand_as(part) for part in parts]
    total = torch.cat(totals, 1)
    return torch.where(total > 0, 1 / total, 1)
