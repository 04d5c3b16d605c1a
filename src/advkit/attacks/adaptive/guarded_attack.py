"""Base class of attacks on a guard, and their starts from images that the guard accepts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from advkit.attacks.adaptive.guarded_model import Guarded
from advkit.attacks.adaptive.joint_problem import AnyJoint, JointProblem, cast_problem
from advkit.attacks.engine.black_box import BlackBoxAttack
from advkit.attacks.engine.goal import Goal
from advkit.attacks.engine.logit_scale import LogitScale
from advkit.attacks.engine.problem import Problem
from advkit.core import checks, conversions, sample_rows
from advkit.core.results import InconclusiveWarning
from advkit.core.tensors import at_least_float32
from advkit.models import as_classifier


class Clean(NamedTuple):
    """Start images that the guard accepts."""

    x: Tensor  # (m, *features)
    labels: Tensor  # (m,), predicted by the model
    logits: Tensor  # (m, classes)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GuardedAttack(BlackBoxAttack):
    """White-box attack on a guarded model and its detector; the guard's labels decide on success.

    An image that the model labels with another class, and that the guard accepts, is an adversarial
    example if the distance is not limited. An attacker who has images of several classes, the
    `start_images`, can begin there.
    """

    start_images: Tensor | None = None
    _required_methods: ClassVar[tuple[str, ...]] = ("margin_over_threshold",)

    def __post_init__(self) -> None:
        x = self.start_images
        if x is None:
            return
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else conversions.describe(x)
            raise TypeError(
                f"`start_images` must be a tensor of floats or None, got {got}."
                f"{conversions.remedy('start_images', x, '.float()')}"
            )
        if x.ndim < 2 or not len(x):
            shape = tuple(x.shape)
            raise ValueError(f"`start_images` must have shape (m, *features), got {shape}.")

    def _adapt_model(self, model: object) -> Guarded:
        return Guarded(as_classifier(model), type(self).__name__, self._required_methods)

    def _joint(self, kind: type[AnyJoint], problem: Problem, **changes: Any) -> AnyJoint:
        """Return `problem` as a joint problem of the model and the detector."""
        guarded: Any = problem.model
        scale = LogitScale(len(problem.x))
        return cast_problem(
            kind, problem, model=guarded.inner, guarded=guarded, scale=scale, **changes
        )

    def _accepted_images(self, problem: JointProblem) -> Clean | None:
        """Return the start images that the guard accepts; their pass is not counted as queries."""
        if self.start_images is None:
            return None
        if self.start_images.shape[1:] != problem.x.shape[1:]:
            raise ValueError(
                f"`start_images` must have samples of shape {tuple(problem.x.shape[1:])} like x, "
                f"got {tuple(self.start_images.shape[1:])}."
            )
        x = self.start_images.detach().to(problem.x)
        lower, upper = problem.model.bounds
        if not ((x >= lower) & (x <= upper)).all():
            raise ValueError(
                f"`start_images` must be within the model's bounds [{lower:g}, {upper:g}], got "
                f"values from {x.min():g} to {x.max():g}."
            )
        with sample_rows.unnumbered("the images in start_images"):
            logits = at_least_float32(problem.model.logits(x).detach())
            labels = logits.argmax(1)
            accepted = (problem.guarded.margin_over_threshold(x, labels) <= 0).all(1)
        accepted &= logits.isfinite().all(1)
        return Clean(x[accepted], labels[accepted], logits[accepted])


def nearest_clean(
    clean: Clean, goal: Goal, points: Tensor, clean_points: Tensor, max_images: int
) -> list[tuple[Tensor, Tensor]]:
    """Return the nearest accepted images with a label that meets the goal, in order of distance.

    Warns of samples without such an image.

    Args:
        clean: `m` images.
        goal: of `n` samples.
        points: positions of the samples, `(n, width)`.
        clean_points: positions of the images, `(m, width)`.
        max_images: greatest number of images for each sample.

    Returns:
        A list of pairs: the index of an image `(n,)`, and a mask of the samples that have this
        image, bool `(n,)`.
    """
    distance = torch.cdist(
        at_least_float32(points),
        at_least_float32(clean_points),
        compute_mode="donot_use_mm_for_euclid_dist",
    )
    same = goal.labels[:, None] == clean.labels
    distance = distance.masked_fill(~same if goal.targeted else same, math.inf)
    ordered, index = distance.sort(dim=1, stable=True)
    none = ~ordered[:, :1].isfinite().any(1)
    if none.any():
        checks.warn(
            "`start_images` has no image that the guard accepts with another label (or the target) "
            f"for {int(none.sum())} of {len(none)} samples ({checks.samples(none)}). The attack "
            "does not begin at an image for them. Pass more images.",
            InconclusiveWarning,
        )
    exists = ordered.isfinite()[:, :max_images]
    return list(zip(index[:, :max_images].unbind(1), exists.unbind(1), strict=True))
