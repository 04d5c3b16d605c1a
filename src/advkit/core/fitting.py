"""The one training loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from advkit.core import checks
from advkit.core.batching import Batches, progress_bar

TrainingLoss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def fit(
    module: nn.Module,
    loader: Batches,
    *,
    loss: TrainingLoss,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    progress: bool = False,
) -> nn.Module:
    """Train `module` in place: for each epoch and batch one step down `loss(module, x, y)`.

    Args:
        module: left in training mode while it learns and in evaluation mode afterwards.
        loader: batches `(x, y)`, gone through once an epoch; a generator would be empty the second
            time and is refused.
        loss: the scalar to go down.
        optimizer: over the parameters of `module`.
        epochs: passes over `loader`, at least 1.
        progress: show a bar over the epochs.

    Returns:
        `module`.

    Raises:
        ValueError: a loss that is not finite, `epochs` below 1.
        TypeError: `loader` can be gone through only once.
    """
    checks.whole("epochs", epochs, at_least=1)
    if iter(loader) is loader:
        raise TypeError(
            "loader must be iterable once an epoch (a list, a DataLoader), not a generator"
        )
    module.train()
    with progress_bar("training", epochs, progress) as advance:
        for epoch in range(epochs):
            for x, y in loader:
                value = loss(module, x, y)
                if not value.isfinite():
                    raise ValueError(f"the loss became {value.item()} in epoch {epoch}")
                optimizer.zero_grad()
                torch.autograd.backward(value)
                optimizer.step()
            advance(1)
    return module.eval()
