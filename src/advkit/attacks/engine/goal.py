"""The goal of an attack: the condition of success, and the value to climb."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from advkit.core.losses import Loss, margin

# The least shortfall of a sample that is not a success: above zero in float32 and float64 alike.
TIE = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Goal:
    """What counts as success: leaving `labels` `(n,)`, or reaching them when `targeted`.

    With a `confidence` the margin in logits must reach it too. An untargeted search may go for one
    `candidate` class `(n,)` of each sample; success is still any class but the label.
    """

    labels: Tensor
    max_label: int  # of all labels given for the batch, so that no pass has to look for it
    targeted: bool
    confidence: float = 0.0
    candidate: Tensor | None = None

    def select(self, rows: Tensor) -> Goal:
        """The goal of a part of the batch."""
        candidate = None if self.candidate is None else self.candidate[rows]
        return replace(self, labels=self.labels[rows], candidate=candidate)

    def objective(self, loss: Loss, logits: Tensor) -> Tensor:
        """The value to climb, `(n,)`: the loss at the true labels, or minus that at the target.

        With a rival it is the rival's logit minus the label's, whatever the loss.
        """
        if self.candidate is not None:
            pair = torch.stack([self.candidate, self.labels], dim=1)
            return -logits.gather(1, pair).diff(dim=1).squeeze(1)
        value = loss(logits, self.labels)
        if len(logits) == 1 and value.ndim == 0:
            value = value[None]  # a loss that squeezes drops the axis of a single sample
        if value.shape != self.labels.shape:
            raise ValueError(
                f"`loss` must return one value for each sample, shape {tuple(self.labels.shape)}, "
                f"got {tuple(value.shape)}"
            )
        return -value if self.targeted else value

    def gaps(self, logits: Tensor) -> Tensor:
        """How much each class is missed by, `(n, classes)`.

        Leaving a label takes one class at 0 or below, reaching one takes all of them. The label
        itself is at plus or minus infinity, so that it has no part in that.
        """
        own = logits.gather(1, self.labels[:, None])
        gaps = (logits - own if self.targeted else own - logits) + self.confidence
        return gaps.scatter(1, self.labels[:, None], -math.inf if self.targeted else math.inf)

    def violation(self, logits: Tensor) -> Tensor:
        """How much the goal is missed by, `(n,)`: the margin in logits, at most 0 on success.

        Success is what the model answers, so a tie counts as `argmax` decides it. Where the margin
        is infinite or NaN, it is NaN, which no comparison takes for a success: the logits have
        overflowed, or the input was rejected. Minus infinity for a class that is neither the label
        nor the best of the others leaves the margin finite.
        """
        answer = logits.argmax(1)
        reached = answer == self.labels if self.targeted else answer != self.labels
        value = margin(logits, self.labels)
        value = value if self.targeted else -value
        value = torch.where(value.isfinite(), value, math.nan)
        if self.confidence:
            return value + self.confidence
        return torch.where(reached, value, value.clamp_min(TIE))
