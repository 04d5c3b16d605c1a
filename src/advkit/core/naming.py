"""Names for what a caller passes several of, and errors that say whose they are."""

from __future__ import annotations

import difflib
import itertools
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
    """What an argument holds, by name.

    Args:
        role: the argument's name, for errors.
        things: a mapping from names, or a list, whose entries are named here.
        known: the names that things have elsewhere, by their `id`; what is named here is added.
        kind: one of the things in a word, for errors.
        short: what to call a thing that has no name; a number is added to tell two apart.

    Raises:
        TypeError: `things` is neither a mapping from strings nor a list.
        ValueError: it holds nothing, or as a list the same thing twice.
    """
    if isinstance(things, Mapping):
        found = dict(things)
        for name in found:
            if not isinstance(name, str):
                raise TypeError(f"{argument(role)} must have names for keys, got {name!r}")
    elif isinstance(things, (list, tuple)):
        found = _with_names_of_their_own(role, things, known, kind, short)
    else:
        raise TypeError(
            f"{argument(role)} must be a mapping from names to {kind}s or a list of {kind}s, "
            f"got {type(things).__name__}"
        )
    if not found:
        raise ValueError(f"{argument(role)} must hold at least one {kind}, got none")
    for name, thing in found.items():
        known.setdefault(id(thing), name)
    return found


def _with_names_of_their_own(
    role: str,
    things: Sequence[Any],
    known: Mapping[int, str],
    kind: str,
    short: Callable[[Any], str],
) -> dict[str, Any]:
    """Things by what they are called elsewhere, else by what `short` calls them."""
    found: dict[str, Any] = {}
    for thing in things:
        name = known.get(id(thing)) or _free(short(thing), {*found, *known.values()})
        if any(thing is other for other in found.values()):
            raise ValueError(
                f"{argument(role)} must hold each {kind} once, got {short(thing)} twice"
            )
        found[name] = thing
    return found


def _free(name: str, taken: Container[str]) -> str:
    """`name`, with the first number that makes it another one than those `taken`."""
    numbered = (f"{name} {i}" for i in itertools.count(2))
    candidates = itertools.chain([name], numbered)
    return next(candidate for candidate in candidates if candidate not in taken)


def argument(name: str) -> str:
    """Return `name` in backticks if it is an identifier, else as it is."""
    return f"`{name}`" if name.isidentifier() else name


def quoted(names: Iterable[object]) -> str:
    """Return the names in quotes, separated by commas."""
    return ", ".join(map(repr, names))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the known name that is most like `word`, in whatever case, as the end of an error.

    It is empty where none is much like it.
    """
    lowered = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), lowered, n=1)
    return f", did you mean {lowered[close[0]]!r}?" if close else ""


@contextmanager
def error_context(role: str, name: str) -> Iterator[None]:
    """Errors inside say which `role` they are of, by its `name`."""
    try:
        yield
    except TypeError as error:
        raise TypeError(f"{role} {name!r}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{role} {name!r}: {error}") from error
