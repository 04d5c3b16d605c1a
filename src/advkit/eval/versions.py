"""Software and settings of torch that a result was computed with."""

from __future__ import annotations

import platform

import torch

from advkit.core.version import VERSION


def versions() -> dict[str, str]:
    """Return the versions of advkit, Python and torch as plain values for JSON."""
    return {
        "advkit": VERSION,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def numerics() -> dict[str, object]:
    """Return the settings of torch that change results by rounding, as plain values for JSON."""
    kinds = ("cpu", "cuda")
    on = [kind for kind in kinds if torch.is_autocast_enabled(kind)]
    return {
        "autocast": {kind: str(torch.get_autocast_dtype(kind)) for kind in on},
        "default dtype": str(torch.get_default_dtype()),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "TF32 in convolutions": torch.backends.cudnn.allow_tf32,
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }
