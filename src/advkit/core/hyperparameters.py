"""Names, for tables and reports, of attacks and of other frozen dataclasses of hyper-parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MAX_WIDTH = 60


def non_default_fields(obj: object) -> dict[str, object]:
    """Return the hyper-parameters of `obj` that are not at their defaults, by name.

    Tensors and functions are replaced by text, so that the values can be printed and saved.
    """
    if not is_dataclass(obj):
        return {}
    values = {f.name: getattr(obj, f.name) for f in fields(obj) if f.init}
    defaults = {f.name: f.default for f in fields(obj)}
    arrays = (Tensor, np.ndarray)
    changed = {k: v for k, v in values.items() if isinstance(v, arrays) or v != defaults[k]}
    return {k: _plain(v) for k, v in changed.items()}


def all_fields(obj: object) -> dict[str, object]:
    """Return all hyper-parameters of `obj` by name, as values that can be printed and saved."""
    if not is_dataclass(obj):
        return {}
    return {f.name: _plain(getattr(obj, f.name)) for f in fields(obj) if f.init}


def format_call(name: str, given: Mapping[str, object]) -> str:
    """Return `name(key=value, ...)` with floats rounded to four digits."""
    parts = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v!r}" for k, v in given.items())
    return f"{name}({', '.join(parts)})"


def is_equal(a: object, b: object) -> bool:
    """Return whether two hyper-parameters are equal; tensors are compared as a whole."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a.cpu(), b.cpu())
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return bool(np.array_equal(a, b))  # type: ignore[arg-type]
    return bool(a == b)


class _Unquoted(str):
    """Text in place of a value, printed without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _plain(value: object) -> object:
    if isinstance(value, Tensor):
        return _Unquoted(f"<{len(value)} values>")
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Real):  # includes NumPy's numbers, which JSON cannot represent
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, (tuple, list)):
        plain = [_plain(each) for each in value]
        return plain if isinstance(value, list) else tuple(plain)
    return _Unquoted(_short(value))


def _short(value: object) -> str:
    """Return the name or the repr of a value, or its type if these are longer than a line.

    The repr of an attack or a loss is short already; that of a module may have hundreds of lines.
    """
    text = getattr(value, "__name__", None) or repr(value)
    if is_dataclass(value) or (len(text) <= _MAX_WIDTH and "\n" not in text):
        return text
    return type(value).__name__


def to_plain(value: Any) -> Any:
    """Return a value of `non_default_fields` as plain values for JSON, which keep its type."""
    if isinstance(value, _Unquoted):
        return {"text": str(value)}
    if isinstance(value, tuple):
        return {"tuple": [to_plain(each) for each in value]}
    if isinstance(value, list):
        return [to_plain(each) for each in value]
    if isinstance(value, dict):
        return {"dict": {name: to_plain(each) for name, each in value.items()}}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def from_plain(plain: Any) -> Any:
    """Return the value that `to_plain` was called on."""
    if isinstance(plain, list):
        return [from_plain(each) for each in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, value),) = plain.items()
    if kind == "dict":
        return {name: from_plain(each) for name, each in value.items()}
    if kind == "tuple":
        return tuple(from_plain(each) for each in value)
    return _Unquoted(value) if kind == "text" else float(value)
