"""Versions of the software that a result was computed with."""

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
