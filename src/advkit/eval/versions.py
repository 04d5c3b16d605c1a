"""Software and settings of torch that a result was computed with."""

from __future__ import annotations

import platform
from typing import Any

import torch

from advkit.core.version import VERSION

_PRECISIONS = {
    "CUDA matmul": torch.backends.cuda.matmul,
    "cuDNN convolutions": torch.backends.cudnn.conv,  # type: ignore[attr-defined]
    "cuDNN recurrent layers": torch.backends.cudnn.rnn,
    "CPU matmul": torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
    "CPU convolutions": torch.backends.mkldnn.conv,  # type: ignore[attr-defined]
}


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
        **{f"precision of {name}": _precision(part) for name, part in _PRECISIONS.items()},
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def _precision(part: Any) -> str:
    """Return the precision of float32 in a part of torch; "none" inherits that of all parts.

    The older functions, such as `get_float32_matmul_precision`, raise if the newer attributes are
    set, and these follow the older ones.
    """
    own, general = part.fp32_precision, torch.backends.fp32_precision  # type: ignore[attr-defined]
    precision: str = own if own != "none" else general
    return precision if precision != "none" else "ieee"
