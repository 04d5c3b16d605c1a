"""Arrays, tables and lists in place of tensors: what they are, and how to convert them."""

from __future__ import annotations

import numpy as np
from torch import Tensor

_TABLE_LIBRARIES = ("pandas", "polars", "modin", "cudf")
_ENCODE = "Columns of strings or categories are not supported: encode them as numbers first."


def describe(value: object) -> str:
    """Return a short description of the type of `value`, for errors: "a NumPy array"."""
    name, library = type(value).__name__, _library(value)
    if isinstance(value, np.ndarray):
        return "a NumPy array" if _is_numeric(value) else f"a NumPy array of dtype {value.dtype}"
    if _is_table(value):
        return f"a {library} {name}"
    if _is_sparse(value):
        return f"a SciPy sparse matrix ({name})"
    return name


def remedy(name: str, value: object, method: str = "") -> str:
    """Return the sentence that says how to make a tensor of `value`; empty if that is unknown.

    Args:
        name: name of the argument, or words for it.
        value: what was given.
        method: call after the conversion, such as ".float()".
    """
    name = name if name.isidentifier() else "..."
    if isinstance(value, np.ndarray):
        if not _is_numeric(value):
            return f" {_ENCODE}"
        code = f"torch.from_numpy({name})"
    elif _is_table(value):
        converted = f"torch.from_numpy({name}.to_numpy()){method}"
        return f" Convert it with {converted}. {_ENCODE}"
    elif _is_sparse(value):
        code = f"torch.from_numpy({name}.toarray())"
    elif isinstance(value, (list, tuple)):
        of_tensors = bool(value) and isinstance(value[0], Tensor)
        return f" Convert it with torch.{'stack' if of_tensors else 'tensor'}({name})."
    else:
        return ""
    return f" Convert it with {code}{method}."


def is_data(value: object) -> bool:
    """Return True for an array, a table, or a list of numbers or of rows of numbers.

    An iterable of batches is not data in this sense.
    """
    if isinstance(value, (list, tuple)):
        return bool(value) and _is_row(value[0])
    return isinstance(value, np.ndarray) or _is_table(value) or _is_sparse(value)


def _is_row(value: object) -> bool:
    """Return True for a number, or a list of numbers, lists or nothing else."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(_is_row, value))
    return isinstance(value, (int, float, np.number))


def _is_numeric(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bool:
    return array.dtype.kind in "biuf"


def _is_table(value: object) -> bool:
    return _library(value) in _TABLE_LIBRARIES and callable(getattr(value, "to_numpy", None))


def _is_sparse(value: object) -> bool:
    return _library(value) == "scipy" and callable(getattr(value, "toarray", None))


def _library(value: object) -> str:
    """Return the name of the library that the class of `value` belongs to."""
    return type(value).__module__.partition(".")[0]
