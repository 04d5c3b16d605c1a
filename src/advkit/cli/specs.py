"""Numbers and attacks as they are written on a command line."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any

from advkit import attacks
from advkit.cli.errors import UsageError


def number(text: str) -> float:
    """A finite number or a fraction, `8/255`.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    above, _, below = text.partition("/")
    try:
        value = float(above) / float(below) if below else float(text)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number or a fraction like 8/255")
    return value


def known_attacks() -> dict[str, type[Any]]:
    """The attacks by name."""
    return {name: getattr(attacks, name) for name in attacks.__all__}


def attacks_from(specs: Sequence[str], eps: Sequence[float], seed: int) -> list[Any]:
    """The attacks that `specs` name, each at every `eps` unless it sets one of its own.

    Args:
        specs: `NAME` or `NAME:key=value,...`.
        eps: budgets.
        seed: for the attacks that draw random numbers and are given none.

    Raises:
        UsageError: an unknown name, parameter or value, or a budget that is missing.
    """
    return [attack for spec in specs for attack in _attacks(spec, eps, seed)]


def _attacks(spec: str, eps: Sequence[float], seed: int) -> Iterable[Any]:
    name, _, rest = spec.partition(":")
    kind = _find(name)
    given = dict(_setting(spec, part) for part in rest.split(",") if part)
    names = [f.name for f in dataclasses.fields(kind) if f.init]
    for key in given:
        if key not in names:
            raise UsageError(
                f"--attack {spec}: {kind.__name__} has no parameter {key!r}{_meant(key, names)}; "
                f"it has {', '.join(names)}"
            )
    if "seed" in names:
        given.setdefault("seed", seed)
    if "eps" not in names or "eps" in given:
        yield _build(spec, kind, given)
        return
    if not eps:
        raise UsageError(f"--eps is missing: give a budget to {spec}, like --eps 8/255")
    for value in eps:
        yield _build(spec, kind, {**given, "eps": value})


def _find(name: str) -> type[Any]:
    known = known_attacks()
    for candidate, kind in known.items():
        if candidate.lower() == name.lower():
            return kind
    raise UsageError(
        f"--attack: there is no attack {name!r}{_meant(name.upper(), known)}; "
        f"known are {', '.join(known)}"
    )


def _meant(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _setting(spec: str, part: str) -> tuple[str, Any]:
    key, equals, text = part.partition("=")
    if not (key and equals and text):
        raise UsageError(f"--attack {spec}: {part!r} is not of the form key=value")
    return key, _value(text)


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return number(text)
    except argparse.ArgumentTypeError:
        return text


def _build(spec: str, kind: type[Any], given: dict[str, Any]) -> Any:
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--attack {spec}: {error}") from error
