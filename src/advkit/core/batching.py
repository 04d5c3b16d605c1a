"""Minibatches, each with the number of its first sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from advkit.core import checks, conversions, label_checks

Batches = Iterable[Any]  # of batches that `split_batch` understands
# Keys of a dictionary; the longer ones are those of Hugging Face's datasets and image processors.
INPUT_KEYS = ("x", "pixel_values", "image", "images", "input", "inputs")
LABEL_KEYS = ("y", "label", "labels", "target", "targets")
NumberedBatches = Iterator[tuple[Tensor, Tensor, int]]
_IN_BATCHES = " in every batch"


def batches(
    x: Tensor | Batches, y: Tensor | None, batch_size: int, device: str | torch.device | None = None
) -> NumberedBatches:
    """Split `x` and `y` into batches of at most `batch_size` samples.

    If `x` is an iterable of batches, these are returned as they come. Each batch is moved to
    `device` and comes with the number of its first sample in the data.
    """
    if conversions.is_data(x):
        checks.tensor("x", x)
    if not isinstance(x, Tensor):
        if y is not None:
            raise TypeError(
                "`y` must be None when `x` is an iterable of batches with labels, "
                f"got {type(y).__name__}."
            )
        if not isinstance(x, Iterable) or isinstance(x, (Mapping, str)):
            raise TypeError(
                "`x` must be a torch.Tensor or an iterable of batches, such as a DataLoader, "
                f"got {type(x).__name__}."
            )
        if is_pair(x):
            raise TypeError(
                "`x` must be a torch.Tensor or an iterable of batches, got two tensors in a "
                f"{type(x).__name__}. Pass them as `x` and `y`."
            )
        return _numbered(x, device)
    label_checks.tensor_of_labels("y", y, " when `x` is one")
    assert y is not None
    if x.shape[:1] != y.shape[:1]:
        raise ValueError(
            f"`y` must have one label for each of {len(x)} samples, got {len(y) if y.ndim else y}."
        )
    checks.integer("batch_size", batch_size, at_least=1)
    starts = range(0, len(x), batch_size)
    return _numbered(((x[i : i + batch_size], y[i : i + batch_size]) for i in starts), device)


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
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping):
        x, y = first_entry(batch, INPUT_KEYS), first_entry(batch, LABEL_KEYS)
        if x is not None and y is not None:
            return x, y
    raise TypeError(
        f"`{name}` must give batches with labels, as (x, y) or as a dictionary with the keys 'x' "
        f"and 'y', 'pixel_values' and 'labels', or 'image' and 'label', got {_kind(batch)} "
        f"(batch {number})."
    )


def first_entry(batch: Mapping[Any, Any], keys: Iterable[str]) -> Any:
    """Return the entry of the first of `keys` that `batch` has, `None` without one."""
    return next((batch[key] for key in keys if key in batch), None)


def _kind(batch: object) -> str:
    """Return a short description of a batch, for errors."""
    if isinstance(batch, Tensor):
        return f"a tensor of shape {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        return f"a dictionary with the keys {sorted(map(str, batch))}"
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {len(batch)}"
    return type(batch).__name__


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
