"""Checks of the columns from which detection scores are computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from advkit.core import checks
from advkit.eval.detection.bootstrap import Floats, Ints


def plain_array(name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return `values` as an array; raise if some are masked."""
    array = np.asanyarray(values)
    checks.unmasked(name, array)
    return np.asarray(array)


def checked_column(name: str, values: npt.ArrayLike, n: int) -> npt.NDArray[Any]:
    """Return `values` as an array; raise unless its shape is `(n,)`."""
    column = plain_array(name, values)
    if column.shape != (n,):
        raise ValueError(f"`{name}` must have shape ({n},), got {column.shape}.")
    return column


def checked_floats(name: str, values: npt.ArrayLike, shape: tuple[int, ...]) -> Floats:
    """Return `values` as float64; raise unless they are finite numbers of that `shape`."""
    array = plain_array(name, values)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"`{name}` must be numbers, got {array.dtype}.")
    if array.shape != shape:
        raise ValueError(f"`{name}` must have shape {shape}, got {array.shape}.")
    bad = torch.from_numpy(~np.isfinite(array).reshape(len(array), -1).all(1))
    if bad.any():
        raise ValueError(
            f"`{name}` must be finite, got NaN or infinity ({checks.samples(bad, noun='row')})."
        )
    return array.astype(np.float64)


def checked_samples(samples: npt.ArrayLike | None, n: int) -> Ints:
    """Return the number of the sample of each row, from 0 and without gaps."""
    if samples is None:
        return np.arange(n)
    return np.unique(checked_column("samples", samples, n), return_inverse=True)[1]


def check_bootstrap(bootstrap: int, seed: int) -> None:
    """Raise unless `bootstrap` is at least 1 and `seed` is not negative."""
    checks.integer("bootstrap", bootstrap, at_least=1)
    checks.integer("seed", seed, at_least=0)
