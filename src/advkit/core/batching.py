"""Minibatches, each with the number of its first sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from advkit.core import checks

Batches = Iterable[tuple[Tensor, Tensor]]
NumberedBatches = Iterator[tuple[Tensor, Tensor, int]]


def batches(
    x: Tensor | Batches, y: Tensor | None, batch_size: int, device: str | torch.device | None = None
) -> NumberedBatches:
    """Split `x` and `y` into batches of at most `batch_size` samples.

    If `x` is an iterable of batches, these are returned as they come. Each batch is moved to
    `device` and comes with the number of its first sample in the data.
    """
    if isinstance(x, np.ndarray):
        raise TypeError(
            "`x` must be a torch.Tensor, got a NumPy array. Convert it with torch.from_numpy(x)."
        )
    if not isinstance(x, Tensor):
        if y is not None:
            raise TypeError(
                "`y` must be None when `x` is an iterable of (x, y) batches, "
                f"got {type(y).__name__}."
            )
        if not isinstance(x, Iterable):
            raise TypeError(
                "`x` must be a torch.Tensor or an iterable of (x, y) batches, "
                f"got {type(x).__name__}."
            )
        return _numbered(x, device)
    checks.tensor_of_labels("y", y, " when `x` is one")
    assert y is not None
    if len(x) != len(y):
        raise ValueError(f"`y` must have one label for each of {len(x)} samples, got {len(y)}.")
    checks.integer("batch_size", batch_size, at_least=1)
    starts = range(0, len(x), batch_size)
    return _numbered(((x[i : i + batch_size], y[i : i + batch_size]) for i in starts), device)


def _numbered(pairs: Batches, device: str | torch.device | None) -> NumberedBatches:
    first = 0
    for x, y in pairs:
        if device is not None:
            checks.tensor_of_labels("y", y)
            x, y = x.to(device), y.to(device)
        yield x, y, first
        first += len(x)


def without_empty(numbered: NumberedBatches) -> NumberedBatches:
    """Yield the batches that have samples, and raise if there are none."""
    total = 0
    for x, y, first in numbered:
        if len(x):
            yield x, y, first
        total += len(x)
    if not total:
        raise ValueError("`x` must hold at least one sample, got none.")


@contextmanager
def offset_sample_numbers(first: int) -> Iterator[None]:
    """Add the number of a batch's first sample to errors, which number samples within the batch."""
    try:
        yield
    except ValueError as error:
        if first == 0:
            raise
        raise ValueError(f"in the batch that begins at sample {first}: {error}") from error
