"""Properties of tensors that every layer needs: precision and device."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(v: Tensor) -> Tensor:
    """`v` in float32 at least: 16 bits are too few to compute with."""
    return v.to(torch.promote_types(v.dtype, torch.float32))


def asynchronous(device: torch.device) -> bool:
    """Whether work is only handed over to `device`, so that looking at a value waits for all of it.

    On a CPU a look is nearly free and may save work; elsewhere a loop must go on without.
    """
    return device.type != "cpu"
