"""Losses of attacks: functions of logits and labels, with one value for each sample.

Every loss `(logits (n, classes), y (n,)) -> (n,)` grows as the model moves away from `y`. An
untargeted attack maximizes it at the true labels, a targeted attack minimizes it at the target.
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
CandidateLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def split_label_logit(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logit of `y` `(n,)`, and `logits` `(n, classes)` with it at minus infinity."""
    index = y[:, None]
    return logits.gather(1, index).squeeze(1), logits.scatter(1, index, -math.inf)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return the largest other logit minus the logit of `y`: positive for misclassified samples."""
    own, others = split_label_logit(logits, y)
    return others.amax(1) - own


def log_odds_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy in log-odds: log(1 - p) - log(p) for the probability p of `y`.

    The usual cross-entropy is softplus of this value, an increasing function. Both therefore rank
    samples equally, and their gradients have the same direction, which is all that a normalized
    step uses. The gradient here lacks the factor 1 - p. In float32 that factor is zero once a net
    is confident. An attack on the usual form then makes no step and takes the net for robust.
    """
    own, others = split_label_logit(logits, y)
    return others.logsumexp(1) - own


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Return the difference of logits ratio (Croce and Hein, 2020, arXiv:2003.01690, eq. 6).

    It is the margin divided by the gap between the largest and the third largest logit, which does
    not depend on the scale of the logits. It is for untargeted attacks only: it is constant where
    `y` has the third largest logit, and so does not lead to a target.

    Raises:
        ValueError: there are fewer than three classes.
    """
    _check_classes(logits, 3, "which needs three")
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2]).clamp_min(torch.finfo(logits.dtype).tiny)


def dlr_at_target(logits: Tensor, target: Tensor) -> Tensor:
    """Return the targeted DLR loss of the margin at `target`, which a targeted attack minimizes."""
    return margin(logits, target) / _targeted_scale(logits)


def logit_gap(logits: Tensor, y: Tensor, candidate: Tensor) -> Tensor:
    """Return the logit of class `candidate` `(n,)` minus that of `y`, to be maximized."""
    return logits.gather(1, torch.stack([y, candidate], dim=1)).diff(dim=1).squeeze(1)


def targeted_dlr(logits: Tensor, y: Tensor, candidate: Tensor) -> Tensor:
    """Return the targeted DLR loss (arXiv:2003.01690, eq. 7), to be maximized.

    It is the logit of class `candidate` `(n,)` minus that of `y`, divided by a gap between the
    largest logits.

    Raises:
        ValueError: there are fewer than four classes.
    """
    return logit_gap(logits, y, candidate) / _targeted_scale(logits)


def _targeted_scale(logits: Tensor) -> Tensor:
    """Return the largest logit minus the mean of the third and the fourth, `(n,)`, positive."""
    _check_classes(logits, 4, "which needs four to aim at a class")
    top = logits.topk(4, dim=1).values
    return (top[:, 0] - top[:, 2:].mean(1)).clamp_min(torch.finfo(logits.dtype).tiny)


def _check_classes(logits: Tensor, needed: int, reason: str) -> None:
    """Raise unless `logits` `(n, classes)` have the number of classes `needed` by DLR."""
    if logits.shape[1] < needed:
        raise ValueError(
            f"`loss` must be 'ce' or 'margin' with {logits.shape[1]} classes, got 'dlr', {reason}."
        )


LOSSES: dict[LossName, Loss] = {"ce": log_odds_loss, "margin": margin, "dlr": dlr}


def check_loss(loss: object) -> None:
    """Raise unless `loss` is a known name or a callable."""
    if not callable(loss):
        checks.one_of("loss", loss, tuple(LOSSES))


def is_built_in(loss: Loss) -> bool:
    """Return whether `loss` is one of the named losses of this package."""
    return loss in LOSSES.values() or loss is dlr_at_target


def get_loss(loss: LossName | Loss) -> Loss:
    """Return the loss of that name; a callable is wrapped to get copies, which it may modify."""
    return partial(_on_copies, loss) if callable(loss) else LOSSES[loss]


def loss_toward(loss: LossName | Loss) -> CandidateLoss:
    """Return the function `(logits, y, candidate)` that an attack on `y` maximizes to a class.

    Cross-entropy and custom losses are those at the class, negated.
    """
    if loss == "margin":
        return logit_gap
    if loss == "dlr":
        return targeted_dlr
    at_class = get_loss(loss)
    return lambda logits, _, candidate: -at_class(logits, candidate)


def _on_copies(loss: Loss, logits: Tensor, y: Tensor) -> Tensor:
    """Return `loss` of copies, since the same logits later decide on the success of an attack."""
    return loss(logits.clone(), y.clone())
