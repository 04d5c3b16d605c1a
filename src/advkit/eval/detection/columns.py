"""Checks of the columns that scores of detectors are computed from."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from advkit.core import checks
from advkit.eval.detection.bootstrap import Floats, Ints


def plain_array(name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return `values` as an array, or raise if some are masked."""
    found = np.asanyarray(values)
    checks.unmasked(name, found)
    return np.asarray(found)


def checked_column(name: str, values: npt.ArrayLike, n: int) -> npt.NDArray[Any]:
    """Return `values` as an array, or raise unless its shape is `(n,)`."""
    column = plain_array(name, values)
    if column.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), got {column.shape}")
    return column


def checked_floats(name: str, values: npt.ArrayLike, shape: tuple[int, ...]) -> Floats:
    """Return `values` as float64, or raise unless they are finite numbers of that `shape`."""
    found = plain_array(name, values)
    if found.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be numbers, got {found.dtype}")
    if found.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {found.shape}")
    bad = torch.from_numpy(~np.isfinite(found).reshape(len(found), -1).all(1))
    if bad.any():
        raise ValueError(f"{name} must be finite, is not in row {checks.indices(bad)}")
    return found.astype(np.float64)


def checked_samples(samples: npt.ArrayLike | None, n: int) -> Ints:
    """Which sample each row is of, from 0 on."""
    if samples is None:
        return np.arange(n)
    return np.unique(checked_column("samples", samples, n), return_inverse=True)[1]


def check_draws(bootstrap: int, seed: int) -> None:
    """Raise unless `bootstrap` counts at least one resample and `seed` is not negative."""
    checks.integer("bootstrap", bootstrap, at_least=1)
    checks.integer("seed", seed, at_least=0)
