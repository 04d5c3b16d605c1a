"""Numbers in the notation of the command line."""

from __future__ import annotations

import argparse
import math
import re


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
    if not text.isascii() or "_" in text:  # float() takes digits of other alphabets and 1_000
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a number or a fraction like 8/255, got {text!r}")
    return value


def integer(text: str) -> int:
    """Parse an integer in decimal digits.

    Raises:
        argparse.ArgumentTypeError: it is something else, or has more digits than Python converts.
    """
    if not re.fullmatch(r"[+-]?[0-9]{1,4000}", text):
        raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}")
    return int(text)


def count(text: str) -> int:
    """Parse an integer of at least 1.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    try:
        value = integer(text)
    except argparse.ArgumentTypeError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return value


def least_accuracy(text: str) -> tuple[str, float]:
    """Parse a robust accuracy to reach, such as `0.45` or `linf 8/255=0.45`.

    Returns:
        The budget, empty if it is left out, and the share.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    budget, _, share = text.rpartition("=")
    try:
        value = number(share.strip())
    except argparse.ArgumentTypeError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(
            f"must be a share in [0, 1] such as 0.45, or BUDGET=SHARE, got {text!r}"
        )
    return budget.strip(), value


def shard(text: str) -> tuple[int, int]:
    """Parse the number of a shard and the number of shards, such as `0/4`.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    first, _, second = text.partition("/")
    try:
        index, total = integer(first), integer(second)
    except argparse.ArgumentTypeError:
        index = total = 0
    if not 0 <= index < total:
        raise argparse.ArgumentTypeError(f"must be I/N with 0 <= I < N, such as 0/4, got {text!r}")
    return index, total
