"""Indexed data sets: objects with a length that return one sample (input, label) for each index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from advkit.core import conversions
from advkit.core.entries import ACCEPTED, describe_entries, inputs_and_labels

_INT64_END = 2**63  # the first integer above int64
_TO_TENSORS = "Give the data set a transform to tensors, such as ToTensor() of torchvision."


class IndexedData(Protocol):
    """A data set with a length that returns a sample, `(input, label)`, for each index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def is_indexed(x: object) -> TypeGuard[IndexedData]:
    """Return True for an indexed data set, such as a map-style `Dataset` of torch.

    Any other object with `__len__` and `__getitem__` is one too, except for tensors, arrays,
    tables, mappings and sequences: a list or a deque holds batches.

    Raises:
        TypeError: `x` is a map-style `Dataset` of torch without `__len__`.
    """
    others = (Tensor, Mapping, Sequence, DataLoader, IterableDataset)
    if isinstance(x, others) or conversions.is_data(x):
        return False
    has_length = hasattr(type(x), "__len__")
    if isinstance(x, Dataset) and not has_length:
        raise TypeError(
            f"`x` must have a length, got {type(x).__name__}, a data set without `__len__`. Add "
            "the method, or pass an iterable of batches."
        )
    return has_length and hasattr(type(x), "__getitem__")


def number_of_samples(x: object) -> int | None:
    """Return the number of samples of a tensor or an indexed data set, `None` if it is unknown.

    The length of a `DataLoader` or a list is a number of batches and does not count.
    """
    if isinstance(x, Tensor):
        return len(x)
    return len(x) if is_indexed(x) else None


def select(
    x: Tensor | IndexedData, y: Tensor | None, start: int, stop: int
) -> tuple[Tensor, Tensor]:
    """Return the inputs and labels of the samples from `start` up to, but not including, `stop`.

    Samples of an indexed data set are read one after another, each once, and no others.

    Args:
        x: inputs `(n, *features)`, or an indexed data set of n samples.
        y: labels `(n,)`; `None` if `x` is an indexed data set.
        start: number of the first sample.
        stop: number after that of the last sample; it may be larger than n.

    Returns:
        Inputs `(stop - start, *features)` and labels `(stop - start,)`; those of an indexed data
        set are int64.

    Raises:
        TypeError: a sample is not an input and a label, the input is not a tensor or an array, or
            the label is not an integer.
        ValueError: the inputs have several shapes, or a label is not an integer.
    """
    if isinstance(x, Tensor):
        assert y is not None
        return x[start:stop], y[start:stop]
    numbers = range(start, min(stop, len(x)))
    samples = [_sample(x[i], i) for i in numbers]
    inputs = [sample for sample, _ in samples]
    _check_shapes(inputs, start)
    labels = torch.tensor([label for _, label in samples], dtype=torch.int64)
    return torch.stack(inputs) if inputs else torch.empty(0), labels


def _sample(sample: object, number: int) -> tuple[Tensor, int]:
    """Return the input and the label of one sample of an indexed data set."""
    entries = inputs_and_labels(sample)
    if entries is None:
        raise TypeError(
            f"`x` must give samples with labels, {ACCEPTED}, got {describe_entries(sample)} "
            f"(sample {number})."
        )
    return _input(entries[0], number), _label(entries[1], number)


def _input(value: object, number: int) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        try:
            return torch.from_numpy(np.array(value))  # a copy: the array may be read-only
        except TypeError:
            got = f"an array of dtype {value.dtype}"
    else:
        got = type(value).__name__
    is_image = type(value).__module__.partition(".")[0] == "PIL"
    got, way_out = (f"a PIL image ({got})", f" {_TO_TENSORS}") if is_image else (got, "")
    raise TypeError(
        f"`x` must give inputs that are tensors or numeric arrays, got {got} (sample {number})."
        f"{way_out}"
    )


def _label(value: object, number: int) -> int:
    """Return a label as an int; a float that is an integer is accepted, as it is in tensors."""
    shape = tuple(getattr(value, "shape", ()))
    if shape:
        raise TypeError(
            f"`x` must give one integer label for each sample, got labels of shape {shape} (sample "
            f"{number}). If its entries are batches, pass iter(x)."
        )
    plain = value.item() if isinstance(value, (Tensor, np.ndarray, np.generic)) else value
    if not isinstance(plain, (int, float)):
        raise TypeError(
            f"`x` must give integer labels, got {type(plain).__name__}: {plain!r} (sample "
            f"{number})."
        )
    if plain != plain // 1 or not -_INT64_END <= plain < _INT64_END:
        raise ValueError(f"`x` must give integer labels of 64 bits, got {plain} (sample {number}).")
    return int(plain)


def _check_shapes(inputs: list[Tensor], start: int) -> None:
    """Raise unless all inputs of a batch, of the samples from `start` on, have one shape."""
    for number, each in enumerate(inputs, start):
        if each.shape != inputs[0].shape:
            raise ValueError(
                f"`x` must give inputs of one shape in a batch, got {tuple(inputs[0].shape)} "
                f"(sample {start}) and {tuple(each.shape)} (sample {number}). Resize the inputs, "
                "or set `batch_size` to 1."
            )
