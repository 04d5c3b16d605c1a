"""Preprocessing that belongs to a model, so that attacks work in the units of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalize:
    """`(x - mean) / std` over the channels, the second axis of `x`.

    Per-channel bounds come out of it by themselves: the box stays that of the data, say [0, 1], and
    the net sees what it was trained on.

    Args:
        mean: one value for each channel, or one for all.
        std: likewise, none of them zero.

    Example:
        >>> from advkit import Normalize, TorchClassifier
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
        >>> model = TorchClassifier(net, preprocess=Normalize((0.5, 0.5, 0.4), (0.2, 0.2, 0.3)))
    """

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        if not (hasattr(self.mean, "__len__") and hasattr(self.std, "__len__")):
            raise TypeError("mean and std must be sequences, one value for each channel")
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values, but std has {len(self.std)}")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"`std` must be positive, got {tuple(self.std)}")

    def __call__(self, x: Tensor) -> Tensor:
        """`x` `(n, channels, ...)` normalized."""
        if len(self.mean) not in (1, x.shape[1]):
            raise ValueError(f"mean has {len(self.mean)} values, but x has {x.shape[1]} channels")
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean, std = (
            torch.as_tensor(v, dtype=x.dtype, device=x.device) for v in (self.mean, self.std)
        )
        return (x - mean.view(shape)) / std.view(shape)
