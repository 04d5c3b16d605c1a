"""What an attack climbs: functions of logits and labels, one value for each sample.

Every loss `(logits (n, classes), y (n,)) -> (n,)` grows as the model moves away from `y`. An
untargeted attack ascends it at the true labels, a targeted one descends it at the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from advkit.core import checks

LossName = Literal["ce", "margin", "dlr"]
Loss = Callable[[Tensor, Tensor], Tensor]


def split_label_logit(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The logit of `y`, `(n,)`, and the logits with that one at minus infinity, `(n, classes)`."""
    index = y[:, None]
    return logits.gather(1, index).squeeze(1), logits.scatter(1, index, -math.inf)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Best other logit minus the logit of `y`: positive once the sample is misclassified."""
    own, others = split_label_logit(logits, y)
    return others.amax(1) - own


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy in log-odds: log(1 - p) - log(p) for the probability p of `y`.

    The usual cross-entropy is softplus of this value, a growing function, so both rank the same and
    have gradients of the same direction, which is all that a normalized step keeps. What is left
    out is the factor 1 - p. In float32 that factor is zero once a net is confident, and an attack
    on the usual form then stands still and takes the net for robust.
    """
    own, others = split_label_logit(logits, y)
    return others.logsumexp(1) - own


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein, 2020, arXiv:2003.01690, eq. 6).

    The margin over the gap between the largest and the third largest logit: free of the scale of
    the logits. With two classes there is no third: the margin itself, and a warning.

    For untargeted attacks only: it is constant where `y` has the third largest logit, which is no
    way to get to a target. The paper's targeted form (eq. 7) is another function.
    """
    if logits.shape[1] < 3:
        checks.warn("loss 'dlr' needs three classes; with two it is the margin")
        return margin(logits, y)
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2]).clamp_min(torch.finfo(logits.dtype).tiny)


LOSSES: dict[LossName, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


def check_loss(loss: object) -> None:
    """Raise unless `loss` is a known name or a callable."""
    if not callable(loss):
        checks.one_of("loss", loss, tuple(LOSSES))


def is_built_in(loss: Loss) -> bool:
    """Return whether `loss` is one of the losses that have a name."""
    return loss in LOSSES.values()


def get_loss(loss: LossName | Loss) -> Loss:
    """Return the function that `loss` names, or `loss` on copies, which it may write to."""
    return partial(_on_copies, loss) if callable(loss) else LOSSES[loss]


def _on_copies(loss: Loss, logits: Tensor, y: Tensor) -> Tensor:
    """The `loss` of copies: the success of an attack is computed from the same logits later."""
    return loss(logits.clone(), y.clone())
