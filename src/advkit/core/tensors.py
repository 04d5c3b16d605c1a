"""Properties of tensors that every layer needs: precision, finite lengths and device."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(v: Tensor) -> Tensor:
    """Return `v` in float32 or its own higher precision; 16 bits are too few to compute in."""
    return v.to(torch.promote_types(v.dtype, torch.float32))


def finite_multiple(lengths: Tensor, factor: float) -> Tensor:
    """Return `factor * lengths`, at most the largest number of the dtype."""
    return (factor * lengths).clamp_max(torch.finfo(lengths.dtype).max)


def asynchronous(device: torch.device) -> bool:
    """Return whether `device` computes asynchronously, so that reading a value waits for all work.

    On a CPU reading a value is nearly free and may save work. On other devices a loop must not
    depend on values.
    """
    return device.type != "cpu"
