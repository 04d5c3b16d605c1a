"""Preprocessing that belongs to a model, so that attacks work in the units of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalize:
    """Normalization `(x - mean) / std` of each channel, where channels are the second axis of `x`.

    The bounds stay those of the data, say [0, 1], although they differ between channels after the
    normalization. The network receives the values that it was trained on.

    Args:
        mean: one value for each channel, or a single value for all channels.
        std: one positive value for each channel, or a single value for all channels.

    Raises:
        TypeError: `mean` or `std` is not a sequence.
        ValueError: `mean` and `std` differ in length, or a value of `std` is not positive.

    Example:
        >>> from advkit import Normalize, TorchClassifier
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
        >>> model = TorchClassifier(net, preprocess=Normalize((0.5, 0.5, 0.4), (0.2, 0.2, 0.3)))
    """

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        if not (hasattr(self.mean, "__len__") and hasattr(self.std, "__len__")):
            raise TypeError(
                "`mean` and `std` must be sequences with one value for each channel, got "
                f"{type(self.mean).__name__} and {type(self.std).__name__}."
            )
        if len(self.mean) != len(self.std):
            raise ValueError(
                "`mean` and `std` must have the same number of values, got "
                f"{len(self.mean)} and {len(self.std)}."
            )
        if not all(value > 0 for value in self.std):
            raise ValueError(f"`std` must be positive, got {tuple(self.std)}.")

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize `x` `(n, channels, ...)`.

        Raises:
            ValueError: the number of channels is not the number of values of `mean`.
        """
        if len(self.mean) not in (1, x.shape[1]):
            raise ValueError(
                f"`x` must have {len(self.mean)} channels, one for each value of `mean`, "
                f"got {x.shape[1]}."
            )
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean, std = (
            torch.as_tensor(v, dtype=x.dtype, device=x.device) for v in (self.mean, self.std)
        )
        return (x - mean.view(shape)) / std.view(shape)
