"""Logit squeezing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advkit.core import checks
from advkit.core.bounds import checked_bounds
from advkit.core.norms import lp_norm
from advkit.defenses.training_loss import TrainingLoss, cross_entropy, logits_of


@dataclass(frozen=True, kw_only=True)
class LogitSqueezing(TrainingLoss):
    """Logit squeezing: cross-entropy on noisy inputs and a penalty on the norm of the logits.

    Kannan, Kurakin and Goodfellow (2018, arXiv:1803.06373) propose it together with logit pairing.
    The penalty is `weight` times the mean Euclidean norm of the logits, not squared. The noisy
    inputs are clipped to the bounds. Both follow the code of Mosbach et al. (2018,
    arXiv:1810.12042); Shafahi et al. (2019, arXiv:1910.11585) square the norm.

    Small logits have small gradients, and little else changes: Mosbach et al. show that PGD with
    enough restarts and steps breaks such nets. Attacks on the usual cross-entropy overestimate
    their robustness.

    The noise is drawn from torch's global generator, like that of dropout, also in evaluation mode.

    Args:
        weight: weight of the norm, not negative (lambda in the paper); the default of the code of
            Mosbach et al. is 0.5.
        sigma: standard deviation of the Gaussian noise, in input units, not negative; Mosbach et
            al. use 0.5 on MNIST with inputs in [0, 1].
        bounds: lower and upper end of valid feature values, to which noisy inputs are clipped.

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.

    Example:
        >>> import torch
        >>> from advkit import defenses
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
        >>> defenses.LogitSqueezing(weight=0.5, sigma=0.5)(net, x, y).backward()
    """

    weight: float
    sigma: float = 0.0
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        checks.not_negative("weight", self.weight)
        checks.not_negative("sigma", self.sigma)
        checked_bounds(self.bounds)

    def _value(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits = logits_of(module, self._noisy(x) if self.sigma else x)
        return cross_entropy(logits, y) + self.weight * lp_norm(logits, "l2").mean()

    def _noisy(self, x: Tensor) -> Tensor:
        x = checks.inputs("x", x, self.bounds)  # only the noise may exceed the bounds
        return (x + self.sigma * torch.randn_like(x)).clamp(*self.bounds)
