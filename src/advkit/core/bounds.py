"""Bounds of valid feature values."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Sequence
from typing import NamedTuple, TypeGuard

import numpy as np
from torch import Tensor

from advkit.core import checks, conversions

_SCALE_FIRST = (
    "If features or channels have different ranges, scale the data to one range such as (0, 1), "
    "and convert it back in `preprocess` or inside the model. Normalize does so for channels."
)


class Bounds(NamedTuple):
    """Closed interval of valid feature values, in the units of the input."""

    lower: float
    upper: float


def checked_bounds(bounds: Sequence[float]) -> Bounds:
    """Convert a pair of numbers to `Bounds`.

    Raises:
        TypeError: `bounds` is not a pair of numbers.
        ValueError: `bounds` are not two finite numbers, the lower one first.
    """
    if isinstance(bounds, (Tensor, np.ndarray)) and bounds.shape == (2,):
        bounds = bounds.tolist()
    _check_kinds(bounds)
    try:
        lower, upper = map(float, bounds) if len(bounds) == 2 else (math.nan, math.nan)
    except OverflowError:  # an int beyond the largest float
        lower = upper = math.nan
    if not -math.inf < lower < upper < math.inf:
        raise ValueError(
            "`bounds` must be two finite numbers, lower first, "
            f"got ({', '.join(_shortened(end) for end in bounds)})."
        )
    return Bounds(lower, upper)


def _check_kinds(bounds: object) -> None:
    """Raise TypeError unless `bounds` are numbers in a tuple or a list."""
    if _has_entries(bounds) and any(map(_has_entries, bounds)):
        raise TypeError(
            "`bounds` must be two numbers, the same for all features, "
            f"got {_shortened(bounds)}. {_SCALE_FIRST}"
        )
    if not isinstance(bounds, (tuple, list)):
        raise TypeError(
            "`bounds` must be a pair of numbers, got "
            f"{conversions.describe(bounds)}: {_shortened(bounds)}."
        )
    for end in bounds:
        if not isinstance(end, (Tensor, np.ndarray)):  # of a single number
            checks.number("bounds", end)


def _has_entries(value: object) -> TypeGuard[Collection[object]]:
    """Return True for a list, an array or a tensor, which is not a single number."""
    return isinstance(value, (tuple, list)) or bool(getattr(value, "ndim", 0))


def _shortened(value: object) -> str:
    """Return the text of `value` in one line, cut in the middle if it is long."""
    return " ".join(reprlib.repr(value).split())
