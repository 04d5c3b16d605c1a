"""Optional dependencies, imported inside the functions that need them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

_PACKAGES = {"PIL": "pillow"}  # by the module, where the names differ


def require(module: str, *, extra: str, needed_by: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: dotted name of the module, such as `"matplotlib.figure"`.
        extra: the extra of this package that installs it.
        needed_by: the subject of the error message, such as `"HTML"`.

    Raises:
        ImportError: the dependency is missing. The message names its package, which can be
            installed wherever advkit came from, and the extra.
    """
    try:
        return import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        package = _PACKAGES.get(name, name)
        raise ImportError(
            f"{needed_by} needs {package}. Install it with: pip install {package} (the extra "
            f"{extra!r} of advkit includes it)."
        ) from error
