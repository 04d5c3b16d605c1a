"""Numbers in the notation of the command line."""

from __future__ import annotations

import argparse
import math


def number(text: str) -> float:
    """Parse a finite number or a fraction such as `8/255`.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    numerator, _, denominator = text.partition("/")
    try:
        value = float(numerator) / float(denominator) if denominator else float(text)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a number or a fraction like 8/255, got {text!r}")
    return value


def at_least_one(text: str) -> int:
    """Parse an integer of at least 1.

    Raises:
        argparse.ArgumentTypeError: it is not one.
    """
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)
