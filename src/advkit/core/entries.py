"""Inputs and labels in a batch or a sample: a tuple, a list or a dictionary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

# Keys of a dictionary; the longer ones are those of Hugging Face's datasets and image processors.
INPUT_KEYS = ("x", "pixel_values", "image", "images", "input", "inputs")
LABEL_KEYS = ("y", "label", "labels", "target", "targets")
ACCEPTED = (
    "as (x, y) or as a dictionary with the keys 'x' and 'y', 'pixel_values' and 'labels', or "
    "'image' and 'label'"
)


def inputs_and_labels(value: object) -> tuple[Any, Any] | None:
    """Return the inputs and the labels in `value`, `None` if they cannot be told.

    Args:
        value: `(x, y)`, perhaps with more entries, or a dictionary with inputs and labels.
    """
    if isinstance(value, (tuple, list)) and len(value) >= 2:
        return value[0], value[1]
    if isinstance(value, Mapping):
        x, y = first_entry(value, INPUT_KEYS), first_entry(value, LABEL_KEYS)
        if x is not None and y is not None:
            return x, y
    return None


def first_entry(batch: Mapping[Any, Any], keys: Iterable[str]) -> Any:
    """Return the entry of the first of `keys` that `batch` has, `None` without one."""
    return next((batch[key] for key in keys if key in batch), None)


def describe_entries(value: object) -> str:
    """Return a short description of a batch or a sample, for errors."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dictionary with the keys {sorted(map(str, value))}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__
