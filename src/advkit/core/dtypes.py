"""Enough bits to compute with."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(v: Tensor) -> Tensor:
    """`v` in float32 at least: 16 bits are too few to compute with."""
    return v.to(torch.promote_types(v.dtype, torch.float32))
