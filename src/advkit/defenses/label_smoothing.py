"""Label smoothing."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from advkit.core import checks
from advkit.defenses.training_loss import TrainingLoss, cross_entropy, logits_of


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(TrainingLoss):
    """Cross-entropy at smoothed labels (Szegedy et al., 2016, arXiv:1512.00567).

    The label's class gets 1 - `smoothing` and all classes together the rest, in equal parts: of C
    classes the label keeps 1 - smoothing + smoothing / C.

    By itself no defense: it keeps logits from growing, which weakens the gradients of the usual
    cross-entropy and little else. Attacks that climb the log-odds, as those of `advkit.attacks` do
    by default, are not misled by that. A `smoothing` of 0 is the ordinary cross-entropy, to be
    added to other losses.

    Args:
        smoothing: share of the labels that is spread over all classes, in [0, 1] (epsilon in the
            paper, which has 0.1).

    Raises:
        ValueError: `smoothing` is out of its range.
        TypeError: `smoothing` is no number.

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
