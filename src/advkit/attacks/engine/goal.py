"""Goal of an attack: the condition of success, and the objective to maximize."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from advkit.core.losses import CandidateLoss, Loss, logit_gap, margin

# Smallest violation of a sample that is not a success, greater than zero in float32 and float64.
TIE = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Goal:
    """Condition of success: to leave `labels` `(n,)`, or to reach them when `targeted`.

    With a `confidence`, the margin in logits must reach it too. An untargeted search may aim at one
    `candidate` class `(n,)` of each sample; any class except the label is still a success.
    """

    labels: Tensor
    max_label: int  # largest label given for the batch, computed once and not at each pass
    targeted: bool
    confidence: float = 0.0
    candidate: Tensor | None = None
    candidate_loss: CandidateLoss = logit_gap

    def select(self, rows: Tensor) -> Goal:
        """Return the goal of the samples that `rows` selects, a mask or indices."""
        candidate = None if self.candidate is None else self.candidate[rows]
        return replace(self, labels=self.labels[rows], candidate=candidate)

    def objective(self, loss: Loss, logits: Tensor) -> Tensor:
        """Return the objective to maximize, `(n,)`: the loss at the labels, negated for a target.

        With a candidate class it is `candidate_loss`, for any `loss`.
        """
        if self.candidate is not None:
            return self.candidate_loss(logits, self.labels, self.candidate)
        value = loss(logits, self.labels)
        if len(logits) == 1 and value.ndim == 0:
            value = value[None]  # a loss with a squeeze drops the axis of a single sample
        if value.shape != self.labels.shape:
            raise ValueError(
                f"`loss` must return one value for each sample, shape {tuple(self.labels.shape)}, "
                f"got {tuple(value.shape)}."
            )
        return -value if self.targeted else value

    def gaps(self, logits: Tensor) -> Tensor:
        """Return the gap in logits to each class, `(n, classes)`.

        To leave the label, one class must have a gap of at most 0; to reach it, all classes must.
        The gap of the label itself is plus or minus infinity, which excludes it.
        """
        own = logits.gather(1, self.labels[:, None])
        gaps = (logits - own if self.targeted else own - logits) + self.confidence
        return gaps.scatter(1, self.labels[:, None], -math.inf if self.targeted else math.inf)

    def violation(self, logits: Tensor) -> Tensor:
        """Return the violation of the goal, `(n,)`: the margin in logits, at most 0 on success.

        The predicted label decides about success, so that `argmax` decides ties. An infinite or NaN
        margin becomes NaN, which every comparison rejects. It means that the logits have overflowed
        or that the input was rejected. Minus infinity for a class that is neither the label nor the
        best of the others leaves the margin finite.
        """
        predicted = logits.argmax(1)
        reached = predicted == self.labels if self.targeted else predicted != self.labels
        value = margin(logits, self.labels)
        value = value if self.targeted else -value
        value = torch.where(value.isfinite(), value, math.nan)
        if self.confidence:
            return value + self.confidence
        return torch.where(reached, value, value.clamp_min(TIE))
