"""How an attack, or any frozen dataclass of hyper-parameters, is named in tables and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral, Real

import numpy as np
from torch import Tensor


def non_default_fields(obj: object) -> dict[str, object]:
    """The hyper-parameters of `obj` that are not at their defaults, by name.

    Tensors and functions are given as words, so that the values can be printed and saved.
    """
    if not is_dataclass(obj):
        return {}
    values = {f.name: getattr(obj, f.name) for f in fields(obj) if f.init}
    defaults = {f.name: f.default for f in fields(obj)}
    arrays = (Tensor, np.ndarray)
    changed = {k: v for k, v in values.items() if isinstance(v, arrays) or v != defaults[k]}
    return {k: _plain(v) for k, v in changed.items()}


def format_call(name: str, given: Mapping[str, object]) -> str:
    """`name(key=value, ...)` with numbers cut to four digits."""
    shown = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v!r}" for k, v in given.items())
    return f"{name}({', '.join(shown)})"


class _Words(str):
    """Text that stands for a value and is printed without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _plain(value: object) -> object:
    if isinstance(value, Tensor):
        return _Words(f"<{len(value)} values>")
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Real):  # NumPy's numbers too, which JSON does not know
        return int(value) if isinstance(value, Integral) else float(value)
    return _Words(getattr(value, "__name__", repr(value)))
