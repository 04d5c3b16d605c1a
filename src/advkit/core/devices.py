"""What tells devices apart."""

from __future__ import annotations

import torch


def asynchronous(device: torch.device) -> bool:
    """Whether work is only handed over to `device`, so that looking at a value waits for all of it.

    On a CPU a look is nearly free and may save work; elsewhere a loop must go on without.
    """
    return device.type != "cpu"
