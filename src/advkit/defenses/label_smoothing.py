"""Label smoothing."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from advkit.core import checks
from advkit.defenses.training_loss import TrainingLoss, cross_entropy, logits_of


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(TrainingLoss):
    """Cross-entropy at smoothed labels (Szegedy et al., 2016, arXiv:1512.00567).

    The class of the label gets 1 - `smoothing`, and the rest is spread evenly over all classes. Of
    C classes the label keeps 1 - smoothing + smoothing / C.

    On its own it is not a defense. It limits the growth of logits, which weakens the gradients of
    the usual cross-entropy and little else. Attacks on the log-odds, the default of
    `advkit.attacks`, are not affected. A `smoothing` of 0 is the ordinary cross-entropy, for sums
    with other losses.

    Args:
        smoothing: share of the label that is spread over all classes, in [0, 1] (epsilon in the
            paper, which uses 0.1).

    Raises:
        ValueError: `smoothing` is out of its range.
        TypeError: `smoothing` is not a number.

    Example:
        >>> import torch
        >>> from advkit import defenses
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
        >>> defenses.LabelSmoothing(smoothing=0.1)(net, x, y).backward()
    """

    smoothing: float = 0.1

    def __post_init__(self) -> None:
        checks.fraction("smoothing", self.smoothing)

    def _value(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(logits_of(module, x), y, self.smoothing)
