"""Numbers and attacks as they are written on a command line."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from advkit import attacks
from advkit.cli.errors import UsageError
from advkit.core.naming import did_you_mean

_ALL = "all"


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
    """The attacks that can be written here, by name: those that need a budget or nothing."""
    return {name: kind for name, kind in _every_attack().items() if _writable(kind)}


def unwritable_attacks() -> list[str]:
    """The names of the other attacks, which need a model, say, or are made for guards."""
    return [name for name in _every_attack() if name not in known_attacks()]


def _writable(kind: type[Any]) -> bool:
    """Whether it is made of words: those for guards begin at natural images."""
    takes = {parameter.name for parameter in _parameters(kind)}
    return _needed(kind) <= {"eps"} and "start_images" not in takes


def _every_attack() -> dict[str, type[Any]]:
    return {name: getattr(attacks, name) for name in attacks.__all__}


class _Spec(NamedTuple):
    """One attack as it is written: its class, and the parameters that are given to it."""

    text: str
    kind: type[Any]
    given: dict[str, Any]

    @property
    def takes_eps(self) -> bool:
        """Whether it needs a budget and sets none; an optional one is left as it is."""
        return "eps" in _needed(self.kind) - self.given.keys()

    def at(self, **more: Any) -> Any:
        """The attack, with `more` parameters."""
        try:
            return self.kind(**self.given, **more)
        except (TypeError, ValueError) as error:
            raise UsageError(f"--attack {self.text}: {error}") from error


def attacks_from(
    specs: Sequence[str], eps: Sequence[float], seed: int, default_eps: Sequence[float] = ()
) -> list[Any]:
    """The attacks that `specs` name.

    One that needs a budget and sets none is made for every `eps`, the others are made once.

    Args:
        specs: `NAME`, `NAME:key=value,...`, or `all` for every attack as it is.
        eps: budgets; some attack must take them.
        seed: for the attacks that draw random numbers and are given none.
        default_eps: budgets where `eps` is empty, for the attacks that take one, if any.

    Raises:
        UsageError: an unknown name, parameter or value, or a budget that is missing or not taken.
    """
    found = [_parsed(text, seed) for spec in specs for text in _expanded(spec)]
    if eps and not any(spec.takes_eps for spec in found):
        texts = ", ".join(spec.text for spec in found)
        raise UsageError(f"--eps has no use: none of the attacks needs it ({texts})")
    return [attack for spec in found for attack in _attacks(spec, eps or default_eps)]


def _expanded(spec: str) -> list[str]:
    return list(known_attacks()) if spec.lower() == _ALL else [spec]


def _parsed(text: str, seed: int) -> _Spec:
    name, _, rest = text.partition(":")
    kind = _find(name)
    given = dict(_setting(text, part) for part in rest.split(",") if part)
    names = [parameter.name for parameter in _parameters(kind)]
    for key in given:
        if key not in names:
            raise UsageError(
                f"--attack {text}: {kind.__name__} has no parameter {key!r}"
                f"{did_you_mean(key, names)}; it has {', '.join(names)}"
            )
    if "seed" in names:
        given.setdefault("seed", seed)
    return _Spec(text, kind, given)


def _parameters(kind: type[Any]) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(kind) if field.init]


def _needed(kind: type[Any]) -> set[str]:
    """The parameters that have no default."""
    missing = dataclasses.MISSING
    return {
        f.name for f in _parameters(kind) if f.default is missing and f.default_factory is missing
    }


def _attacks(spec: _Spec, eps: Sequence[float]) -> list[Any]:
    if not spec.takes_eps:
        return [spec.at()]
    if not eps:
        raise UsageError(f"--eps is missing: give a budget to {spec.text}, like --eps 8/255")
    return [spec.at(eps=value) for value in eps]


def _find(name: str) -> type[Any]:
    known = known_attacks()
    for candidate, kind in known.items():
        if candidate.lower() == name.lower():
            return kind
    for candidate in unwritable_attacks():
        if candidate.lower() == name.lower():
            raise UsageError(
                f"--attack: {candidate} needs more than numbers and words: from Python only"
            )
    raise UsageError(
        f"--attack: there is no attack {name!r}{did_you_mean(name, known)}; "
        f"known are {', '.join(known)}, and {_ALL} for all of them"
    )


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
