"""The command that repeats an evaluation, for its report."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

# Options that change the results, in the order of the help.
_OPTIONS = (
    "model", "weights", "data", "layout", "size", "mode", "bounds", "mean", "std", "class_names",
    "suite", "attack", "eps", "limit", "identity", "batch_size", "device", "seed",
)  # fmt: skip
_REPEATABLE = ("attack", "eps")
_LARGEST_DENOMINATOR = 255  # of fractions such as 8/255


def repeating_command(args: argparse.Namespace) -> str:
    """Return the shell command that gives the figures of `advkit evaluate` with `args` again.

    It has the options for which they were given and those with a default, but neither the output
    files nor the store and its shards, which do not change the figures.
    """
    words = [word for name in _OPTIONS for word in _words(name, getattr(args, name))]
    return shlex.join(["advkit", "evaluate", *words])


def _words(name: str, value: Any) -> Iterator[str]:
    """Yield the option `name` with its value, nothing for an option that was not given."""
    if value is None:
        return
    for each in value if name in _REPEATABLE else [value]:
        yield f"--{name.replace('_', '-')}"
        yield from map(_text, each if isinstance(each, list) else [each])


def _text(value: object) -> str:
    """Return the text of a value, which the parser of the command reads as exactly this value."""
    if not isinstance(value, float):
        return str(value)
    plain = f"{Decimal(repr(value)):f}"  # argparse takes -1e-05 for an option
    fraction = Fraction(value).limit_denominator(_LARGEST_DENOMINATOR)
    short = f"{fraction.numerator}/{fraction.denominator}"
    exact = value >= 0 and fraction.numerator / fraction.denominator == value
    return short if exact and len(short) < len(plain) else plain
