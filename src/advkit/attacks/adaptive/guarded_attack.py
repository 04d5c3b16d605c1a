"""The base of attacks on a guard, and natural images that the guard accepts as their starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from advkit.attacks.adaptive.guarded_model import Guarded
from advkit.attacks.adaptive.joint_problem import AnyJoint, Joint, recast
from advkit.attacks.engine.black_box import BlackBoxAttack
from advkit.attacks.engine.goal import Goal
from advkit.attacks.engine.logit_scale import LogitScale
from advkit.attacks.engine.problem import Problem
from advkit.core import checks, sample_rows
from advkit.core.results import InconclusiveWarning
from advkit.core.tensors import at_least_float32
from advkit.models import as_classifier


class Clean(NamedTuple):
    """Natural images that the guard accepts."""

    x: Tensor  # (m, *features)
    labels: Tensor  # (m,), the model's
    logits: Tensor  # (m, classes)


@dataclass(frozen=True, kw_only=True, repr=False)
class GuardedAttack(BlackBoxAttack):
    """An attack that knows the guard's model and detector, and is judged by the guard's labels.

    What the model labels as wanted, and the guard accepts, is an adversarial example of unlimited
    distortion already: so an attacker who has `start_images` images of several classes has a start.
    """

    start_images: Tensor | None = None
    _asks: ClassVar[tuple[str, ...]] = ("margin_over_threshold",)

    def __post_init__(self) -> None:
        x = self.start_images
        if x is None:
            return
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"`start_images` must be a tensor of floats or None, got {got}")
        if x.ndim < 2 or not len(x):
            raise ValueError(f"`start_images` must have shape (m, *features), got {tuple(x.shape)}")

    def _adapt_model(self, model: object) -> Guarded:
        return Guarded(as_classifier(model), type(self).__name__, self._asks)

    def _joint(self, kind: type[AnyJoint], problem: Problem, **more: Any) -> AnyJoint:
        """`problem` as one of the `kind` given, judged by the model and the detector."""
        view: Any = problem.model
        scale = LogitScale(len(problem.x))
        return recast(kind, problem, model=view.inner, guarded=view, scale=scale, **more)

    def _clean(self, problem: Joint) -> Clean | None:
        """The natural images that are accepted. The pass for that belongs to no sample."""
        if self.start_images is None:
            return None
        if self.start_images.shape[1:] != problem.x.shape[1:]:
            raise ValueError(
                f"`start_images` must have samples of shape {tuple(problem.x.shape[1:])} like x, "
                f"got {tuple(self.start_images.shape[1:])}"
            )
        x = self.start_images.detach().to(problem.x)
        lower, upper = problem.model.bounds
        if not ((x >= lower) & (x <= upper)).all():
            raise ValueError(
                f"`start_images` must lie in the model's bounds [{lower:g}, {upper:g}], got values in "
                f"[{x.min():g}, {x.max():g}]"
            )
        with sample_rows.unnumbered("the images in start_images"):
            logits = at_least_float32(problem.model.logits(x).detach())
            labels = logits.argmax(1)
            quiet = (problem.guarded.margin_over_threshold(x, labels) <= 0).all(1)
        keep = quiet & logits.isfinite().all(1)
        return Clean(x[keep], labels[keep], logits[keep])


def nearest_clean(
    clean: Clean, goal: Goal, at: Tensor, places: Tensor, most: int
) -> list[tuple[Tensor, Tensor]]:
    """The nearest of the accepted images that the model labels as wanted, one after another.

    Args:
        clean: `m` images.
        goal: of `n` samples.
        at: where these are, `(n, width)`.
        places: where the images are, `(m, width)`.
        most: how many for each sample.

    Returns:
        Pairs of indices `(n,)` and whether there is such an image, bool `(n,)`; warns of samples
        without any.
    """
    distance = torch.cdist(
        at_least_float32(at), at_least_float32(places), compute_mode="donot_use_mm_for_euclid_dist"
    )
    same = goal.labels[:, None] == clean.labels
    distance = distance.masked_fill(~same if goal.targeted else same, math.inf)
    ordered, index = distance.sort(dim=1, stable=True)
    none = ~ordered[:, :1].isfinite().any(1)
    if none.any():
        checks.warn(
            "`start_images` holds no image that the guard accepts with a label to go to for "
            f"{int(none.sum())} of {len(none)} samples (sample {checks.indices(none)}): they have "
            "no such start",
            InconclusiveWarning,
        )
    return list(zip(index[:, :most].unbind(1), ordered.isfinite()[:, :most].unbind(1), strict=True))
