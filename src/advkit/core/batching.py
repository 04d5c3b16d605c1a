"""Minibatches, each with the number of its first sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from advkit.core import checks, conversions, label_checks
from advkit.core.entries import ACCEPTED, describe_entries, inputs_and_labels
from advkit.core.indexed_data import IndexedData, is_indexed, select

Batches = Iterable[Any]  # of batches that `split_batch` understands
Data = Tensor | Batches | IndexedData | Dataset[Any]  # inputs that `batches` splits
NumberedBatches = Iterator[tuple[Tensor, Tensor, int]]
_IN_BATCHES = " in every batch"


def batches(
    x: Data, y: Tensor | None, batch_size: int, device: str | torch.device | None = None
) -> NumberedBatches:
    """Split `x` and `y` into batches of at most `batch_size` samples.

    If `x` is an iterable of batches, these are returned as they come. If it is an indexed data set,
    each sample is read when its batch is due, and its labels become int64. Each batch is moved to
    `device` and comes with the number of its first sample in the data.
    """
    if conversions.is_data(x):
        checks.tensor("x", x)
    if isinstance(x, Tensor):
        _check_labels(x, y)
    elif y is not None:
        kind = "a data set" if is_indexed(x) else "an iterable of batches"
        raise TypeError(f"`y` must be None when `x` is {kind} with labels, got {type(y).__name__}.")
    elif not is_indexed(x):
        return _numbered(_checked_iterable(x), device)
    checks.integer("batch_size", batch_size, at_least=1)
    starts = range(0, len(x), batch_size)
    return _numbered((select(x, y, i, i + batch_size) for i in starts), device)


def _check_labels(x: Tensor, y: Tensor | None) -> None:
    """Raise unless `y` is a tensor with one label for each sample of `x`."""
    label_checks.tensor_of_labels("y", y, " when `x` is one")
    assert y is not None
    if x.shape[:1] != y.shape[:1]:
        raise ValueError(
            f"`y` must have one label for each of {len(x)} samples, got {len(y) if y.ndim else y}."
        )


def _checked_iterable(x: object) -> Batches:
    """Return `x`, and raise unless it is an iterable of batches."""
    if not isinstance(x, Iterable) or isinstance(x, (Mapping, str)):
        raise TypeError(
            "`x` must be a torch.Tensor, a data set or an iterable of batches, such as a "
            f"DataLoader, got {type(x).__name__}."
        )
    if is_pair(x):
        raise TypeError(
            "`x` must be a torch.Tensor, a data set or an iterable of batches, got two tensors in "
            f"a {type(x).__name__}. Pass them as `x` and `y`."
        )
    return x


def is_pair(value: object) -> bool:
    """Return True for inputs and labels in a tuple or a list, which are not batches."""
    return (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(isinstance(part, Tensor) for part in value)
        and value[1].ndim == 1
    )


def split_batch(batch: object, name: str, number: int) -> tuple[Any, Any]:
    """Return the inputs and the labels of a batch.

    Args:
        batch: `(x, y)`, perhaps with more entries, or a dictionary with inputs and labels.
        name: argument of the caller that gave the batch.
        number: number of the batch, from 1.

    Raises:
        TypeError: the batch has no labels, or is something else.
    """
    entries = inputs_and_labels(batch)
    if entries is None:
        raise TypeError(
            f"`{name}` must give batches with labels, {ACCEPTED}, got {describe_entries(batch)} "
            f"(batch {number})."
        )
    return entries


def _numbered(given: Batches, device: str | torch.device | None) -> NumberedBatches:
    first = 0
    for number, batch in enumerate(given, 1):
        x, y = split_batch(batch, "x", number)
        checks.tensor("x", x, when=_IN_BATCHES)
        label_checks.tensor_of_labels("y", y, _IN_BATCHES)
        if device is not None:
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
