"""The split of clean data: what defenders are fitted on, and what they are calibrated on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from advkit.core import checks
from advkit.core.naming import error_context


class CalibrationSplit(NamedTuple):
    """Clean data by its use.

    Attributes:
        learn: rows of the data to fit on.
        scale: inputs to calibrate the scores on.
        decide: inputs to find the threshold on; may be empty.
    """

    learn: Tensor
    scale: Tensor
    decide: Tensor


def split_given(
    x: Tensor, clean: Tensor, bounds: tuple[float, float], seed: int
) -> CalibrationSplit:
    """Fit on all of `x` `(n, *features)`, calibrate on the inputs `clean` `(m, *features)`.

    Raises:
        TypeError: `clean` is not a tensor of a floating dtype.
        ValueError: `clean` has the wrong shape, is out of the bounds, or holds too few inputs.
    """
    with error_context("argument", "clean"):
        clean = checks.inputs(clean, bounds)
    if len(clean) < 2:
        raise ValueError(f"`clean` must hold at least 2 inputs, got {len(clean)}")
    order = _order(len(clean), seed, clean.device)
    half = len(clean) // 2
    return CalibrationSplit(_all_rows(x), clean[order[:half]], clean[order[half:]])


def hold_out(x: Tensor, share: float, seed: int) -> CalibrationSplit:
    """Hold out a share of `x` `(n, *features)`; a share of 0 calibrates the scores on all of it.

    Raises:
        ValueError: there are too few inputs.
    """
    if not share:
        return CalibrationSplit(_all_rows(x), x, x[:0])
    held = round(share * len(x))
    if held < 2 or len(x) - held < 2:
        raise ValueError(f"`x` must have more samples to hold out {share:g} of them, got {len(x)}")
    order = _order(len(x), seed, x.device)
    return CalibrationSplit(order[held:], x[order[: held // 2]], x[order[held // 2 : held]])


def _all_rows(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)


def _order(n: int, seed: int, device: torch.device) -> Tensor:
    """Return a random order of `n` rows."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(device)
