"""Training with Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advkit.core import checks
from advkit.defenses.training_loss import TrainingLoss, cross_entropy, logits_of


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(TrainingLoss):
    """Cross-entropy of inputs with Gaussian noise, to train models for randomized smoothing.

    This is the training of Cohen, Rosenfeld and Kolter (2019, arXiv:1902.02918) with one noisy copy
    of each input. As in the paper, the noise is not clipped to the bounds of the inputs. The net is
    trained on the inputs that `RandomizedSmoothing` with the same `sigma` queries.

    Each call draws from torch's global generator, as dropout does; `torch.manual_seed` makes a
    training reproducible.

    Args:
        sigma: standard deviation of the noise, in input units; positive.

    Raises:
        ValueError: `sigma` is not positive.
        TypeError: `sigma` is not a number.

    Example:
        >>> import torch
        >>> from advkit.defenses import GaussianNoise
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
        >>> GaussianNoise(sigma=0.25)(net, x, y).backward()
    """

    sigma: float

    def __post_init__(self) -> None:
        checks.positive("sigma", self.sigma)

    def _value(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        noisy = torch.add(x, torch.randn_like(x), alpha=self.sigma)
        return cross_entropy(logits_of(module, noisy), y)
