"""Sources of functions and classes, and the libraries whose sources are not read."""

from __future__ import annotations

import functools
import inspect
import sys
import sysconfig
from pathlib import Path
from tokenize import TokenError
from types import CodeType

# Packages whose functions and classes are known by their names.
_PACKAGES = {"advkit", "torch", "numpy", "scipy", "sklearn", "lightgbm", "xgboost"}


@functools.cache
def is_library(module: str) -> bool:
    """Return whether a module belongs to Python, to advkit or to a library that it builds on."""
    package = module.partition(".")[0]
    if package in _PACKAGES:
        return True
    if package not in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(package), "__file__", None)  # a user's file may have the name
    return file is None or Path(file).is_relative_to(sysconfig.get_paths()["stdlib"])


def qualified_name(value: object) -> str:
    """Return the module and the name of a function or a class."""
    module = getattr(value, "__module__", None) or "builtins"
    module = "__main__" if module == "__mp_main__" else module  # the script, in a spawned worker
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", "")
    return f"{module}.{name}"


def source_of(value: CodeType | type) -> str | None:
    """Return the source of a function's code or of a class; `None` if it is not available.

    The code of a wrapper has the source of the wrapper, not that of the function inside.
    """
    try:
        return inspect.getsource(value)
    except (OSError, TypeError, SyntaxError, TokenError):
        return None
