"""Code of the functions and classes that a function uses from your own modules."""

from __future__ import annotations

import sys
import sysconfig
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from advkit.core.sources import is_library, qualified_name

_INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("purelib", "platlib"))


def helper_code(function: types.FunctionType) -> list[tuple[str, types.CodeType]]:
    """Return name and code of the functions that `function` reaches by global names, in order.

    Followed are functions and classes of modules that are not installed packages, at any depth. The
    values of global variables are not.
    """
    found: dict[int, tuple[str, types.CodeType]] = {}
    waiting = [function]
    while waiting:
        for helper in _used_by(waiting.pop()):
            if helper is not function and id(helper.__code__) not in found:
                found[id(helper.__code__)] = qualified_name(helper), helper.__code__
                waiting.append(helper)
    return sorted(found.values(), key=lambda entry: (entry[0], entry[1].co_code))


def _used_by(function: types.FunctionType) -> Iterator[types.FunctionType]:
    """Yield the functions of your own modules whose names a function reads."""
    names = set(_names(function.__code__))
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        if isinstance(value, types.ModuleType) and _is_own(value.__name__):
            for inner in names & vars(value).keys():
                yield from _functions(vars(value)[inner])
        else:
            yield from _functions(value)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _functions(value: object) -> Iterator[types.FunctionType]:
    """Yield a function of your own, or the methods of a class of your own."""
    value = getattr(value, "__wrapped__", value)  # of functools.cache, for example
    if isinstance(value, types.FunctionType) and _is_own(value.__module__):
        yield value
    elif isinstance(value, type) and _is_own(value.__module__):
        for member in vars(value).values():
            method = getattr(member, "__func__", member)
            if isinstance(method, types.FunctionType):
                yield method


@cache
def _is_own(module: str | None) -> bool:
    """Return whether a module is neither a library nor part of an installed package."""
    if module is None or is_library(module):
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is None or not any(Path(file).is_relative_to(folder) for folder in _INSTALLED)
