"""Names of the entries of an argument, and of the entry that an error is about."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

NamedOrList = Mapping[str, Any] | Sequence[Any]


def assign_names(
    role: str,
    things: NamedOrList,
    known: dict[int, str],
    *,
    kind: str,
    short: Callable[[Any], str],
) -> dict[str, Any]:
    """Return the entries of an argument by name.

    Args:
        role: the argument's name, for errors.
        things: a mapping from names, or a list, whose entries get names here.
        known: the names that things already have, by their `id`; new names are added.
        kind: the word for one of the things, for errors.
        short: returns the name of a thing without one; a number is added where that name is taken.

    Raises:
        TypeError: `things` is neither a mapping from strings nor a list.
        ValueError: `things` is empty, or a list that holds the same thing twice.
    """
    if isinstance(things, Mapping):
        by_name = dict(things)
        for name in by_name:
            if not isinstance(name, str):
                raise TypeError(f"{argument(role)} must have strings as keys, got {name!r}.")
    elif isinstance(things, (list, tuple)):
        by_name = _name_entries(role, things, known, kind, short)
    else:
        raise TypeError(
            f"{argument(role)} must be a mapping from names to {kind}s or a list of {kind}s, "
            f"got {type(things).__name__}."
        )
    if not by_name:
        raise ValueError(f"{argument(role)} must hold at least one {kind}, got none.")
    for name, thing in by_name.items():
        known.setdefault(id(thing), name)
    return by_name


def _name_entries(
    role: str,
    things: Sequence[Any],
    known: Mapping[int, str],
    kind: str,
    short: Callable[[Any], str],
) -> dict[str, Any]:
    """Return the things by their `known` names, or else by those that `short` returns."""
    by_name: dict[str, Any] = {}
    for thing in things:
        name = known.get(id(thing)) or _unused(short(thing), {*by_name, *known.values()})
        if any(thing is other for other in by_name.values()):
            raise ValueError(
                f"{argument(role)} must hold each {kind} once, got {short(thing)} twice."
            )
        by_name[name] = thing
    return by_name


def _unused(name: str, taken: Container[str]) -> str:
    """Return `name`, with the first number from 2 on that makes it unused if it is `taken`."""
    numbered = (f"{name} {i}" for i in itertools.count(2))
    candidates = itertools.chain([name], numbered)
    return next(candidate for candidate in candidates if candidate not in taken)


def argument(name: str) -> str:
    """Return `name` in backticks if it is an identifier, otherwise unchanged."""
    return f"`{name}`" if name.isidentifier() else name


def quoted(names: Iterable[object]) -> str:
    """Return the names in quotes, separated by commas."""
    return ", ".join(map(repr, names))


def alternative(value: object, choices: Sequence[object]) -> str:
    """Return " Use 'NAME'." for the choice that `value` may stand for, an empty string for none.

    Orders of norms stand for their names: infinity for "linf".
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        likely = "linf" if value == math.inf else f"l{value:g}"
        return f" Use {likely!r}." if likely in choices else ""
    names = {name.lower(): name for name in choices if isinstance(name, str)}
    close = difflib.get_close_matches(str(value).lower(), names, n=1) if names else []
    return f" Use {names[close[0]]!r}." if close else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ", did you mean 'NAME'?" for the known name most similar to `word`, ignoring case.

    The string is empty if no name is similar.
    """
    lowered = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), lowered, n=1)
    return f", did you mean {lowered[close[0]]!r}?" if close else ""


@contextmanager
def error_context(role: str, name: str) -> Iterator[None]:
    """Prefix the messages of errors inside with `role` and `name`."""
    try:
        yield
    except TypeError as error:
        raise TypeError(f"{role} {name!r}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{role} {name!r}: {error}") from error
