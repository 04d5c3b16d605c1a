"""Versions of the software that a result was computed with."""

from __future__ import annotations

import platform

import torch


def versions() -> dict[str, str]:
    """Return the versions of Python and torch as plain values for JSON."""
    return {"python": platform.python_version(), "torch": str(torch.__version__)}
