"""Split of clean data into parts for training, for scores and for the threshold."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from advkit.core import checks


class CalibrationSplit(NamedTuple):
    """Clean data by purpose.

    Attributes:
        train_rows: rows of the data to fit on.
        score_inputs: inputs to calibrate the scores on.
        threshold_inputs: inputs to set the threshold on; may be empty.
    """

    train_rows: Tensor
    score_inputs: Tensor
    threshold_inputs: Tensor


def check_fraction(fraction: float) -> None:
    """Raise unless `fraction` is a valid `calibration_fraction`: at least 0 and below 1."""
    checks.fraction("calibration_fraction", fraction)
    if fraction == 1:
        raise ValueError("`calibration_fraction` must be below 1, got 1. The fit needs data, too.")


def split_given(
    x: Tensor, clean: Tensor, bounds: tuple[float, float], seed: int
) -> CalibrationSplit:
    """Use all of `x` `(n, *features)` to fit, and `clean` `(m, *features)` to calibrate.

    Raises:
        TypeError: `clean` is not a tensor of a floating dtype.
        ValueError: `clean` has the wrong shape, is out of the bounds, or has too few inputs.
    """
    clean = checks.inputs("clean", clean, bounds)
    if len(clean) < 2:
        raise ValueError(f"`clean` must hold at least 2 inputs, got {len(clean)}.")
    order = _order(len(clean), seed, clean.device)
    half = len(clean) // 2
    return CalibrationSplit(_all_rows(x), clean[order[:half]], clean[order[half:]])


def hold_out(x: Tensor, fraction: float, seed: int) -> CalibrationSplit:
    """Hold out a fraction of `x` `(n, *features)` for calibration.

    With a fraction of 0, the scores are calibrated on all of `x`.

    Raises:
        ValueError: there are too few inputs.
    """
    if not fraction:
        return CalibrationSplit(_all_rows(x), x, x[:0])
    count = round(fraction * len(x))
    if count < 2 or len(x) - count < 2:
        raise ValueError(
            f"`x` must have more samples to hold out a fraction of {fraction:g}, got {len(x)}."
        )
    order = _order(len(x), seed, x.device)
    return CalibrationSplit(order[count:], x[order[: count // 2]], x[order[count // 2 : count]])


def _all_rows(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)


def _order(n: int, seed: int, device: torch.device) -> Tensor:
    """Return a random permutation of `n` rows."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(device)
