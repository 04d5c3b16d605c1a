"""Checks of the content of a file, made before anything is built from it or changed by it.

All checks raise ValueError and name the part of the file. No check follows values that are nested
deeper than expected.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_MAX_INT = 2**53  # floats represent all integers up to here
_MAY_BE_ZERO = ("last_epoch", "T_cur", "lr", "_last_lr")  # numbers that a scheduler changes
_FRACTIONS = ("betas", "momentum", "max_momentum", "base_momentum")  # of optimizers, in [0, 1]


def check_like(name: str, value: object, expected: object) -> None:
    """Raise unless `value` has the structure of `expected`.

    Types, keys, lengths, dtypes and shapes must be those of `expected`, and so must strings and
    bools. Numbers must be finite, and not negative where those of `expected` are not negative.
    """
    if isinstance(expected, Tensor):
        _check_tensor(name, value, expected)
    elif isinstance(expected, Mapping):
        _check_mapping(name, value, expected)
    elif isinstance(expected, (list, tuple)):
        if not isinstance(value, type(expected)) or len(value) != len(expected):
            raise ValueError(
                f"`{name}` must be a {type(expected).__name__} of length {len(expected)}, "
                f"got {_kind(value)}."
            )
        for i, (entry, expected_entry) in enumerate(zip(value, expected, strict=True)):
            check_like(f"{name}[{i}]", entry, expected_entry)
    elif isinstance(expected, (int, float)) and not isinstance(expected, bool):
        _check_number(name, value, expected)
    elif type(value) is not type(expected) or value != expected:
        raise ValueError(f"`{name}` must be {shown(expected)}, got {shown(value)}.")


def _kind(value: object) -> str:
    """Return the type of `value`, with the length of a list and device and layout of a tensor."""
    kind = type(value).__name__
    if isinstance(value, (list, tuple)):
        return f"{kind} of length {len(value)}"
    if isinstance(value, Tensor):
        return f"{kind} on {value.device} of layout {value.layout}"
    return kind


def check_keys(name: str, value: object, expected: Mapping[str, Any] | Sequence[str]) -> None:
    """Raise unless `value` is a mapping with the keys `expected` and no others."""
    if not isinstance(value, Mapping):
        raise ValueError(f"`{name}` must be a dict, got {type(value).__name__}.")
    differing = [
        key for key in {**dict.fromkeys(expected), **value} if (key in value) != (key in expected)
    ]
    if differing:
        must = "must not have" if differing[0] in value else "must have"
        raise ValueError(f"`{name}` {must} the key {shown(differing[0])}.")


def check_state(name: str, value: object, expected: Mapping[str, Any]) -> None:
    """Raise unless `value` can be the state of a module whose state is `expected` now.

    Entries other than tensors are left to the module.
    """
    check_keys(name, value, expected)
    assert isinstance(value, Mapping)
    for key, entry in expected.items():
        if isinstance(entry, Tensor):
            check_like(f"{name}.{key}", value[key], entry)


def load_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a state dict into `module`; after an error the module is unchanged.

    Raises:
        ValueError: `state` is not a state dict of such a module.
    """
    before = copy.deepcopy(module.state_dict())
    try:
        module.load_state_dict(state)
    except BaseException as error:
        module.load_state_dict(before)
        if isinstance(error, Exception):  # keys and values of other types raise any error
            raise ValueError(str(error)) from error
        raise


def _check_mapping(name: str, value: object, expected: Mapping[Any, Any]) -> None:
    if all(isinstance(key, str) for key in expected):
        check_keys(name, value, expected)
        assert isinstance(value, Mapping)
        for key, entry in expected.items():
            check_like(f"{name}.{key}", value[key], entry)
        return
    if not isinstance(value, type(expected)):  # numbers by number, such as a scheduler's epochs
        raise ValueError(
            f"`{name}` must be a {type(expected).__name__}, got {type(value).__name__}."
        )
    for pair in value.items():
        check_like(name, pair, (0, 0))


def _check_number(name: str, value: object, expected: float) -> None:
    part = name.rstrip("[]0123456789").rpartition(".")[2]
    kinds = (int,) if isinstance(expected, int) and part not in _MAY_BE_ZERO else (int, float)
    if type(value) not in kinds:
        raise ValueError(f"`{name}` must be a number like {expected!r}, got {shown(value)}.")
    assert isinstance(value, (int, float))
    least = -math.inf if expected < 0 else int(kinds == (int,) and expected > 0)
    most = _MAX_INT if isinstance(value, int) else sys.float_info.max
    most = 1 if part in _FRACTIONS else most
    if not least <= value <= most:
        raise ValueError(f"`{name}` must lie in [{least:g}, {most:g}], got {shown(value)}.")


def _check_tensor(name: str, value: object, expected: Tensor) -> None:
    if (
        not isinstance(value, Tensor)
        or value.device.type != "cpu"
        or value.layout != expected.layout
    ):
        raise ValueError(
            f"`{name}` must be a tensor on the CPU of layout {expected.layout}, got {_kind(value)}."
        )
    check_shape(name, value, expected.dtype, expected.shape)
    if bool(expected.isfinite().all()) and not bool(value.isfinite().all()):
        raise ValueError(f"`{name}` must be finite, got NaN or infinity.")
    integer = not expected.is_floating_point() and not expected.is_complex()
    if integer and bool((expected >= 0).all()):
        check_not_negative(name, value)


def check_shape(
    name: str, value: Tensor, dtype: torch.dtype, shape: Sequence[int], *, finite: bool = False
) -> None:
    """Raise unless the tensor `value` has that dtype and shape, and is finite if `finite`."""
    if value.dtype != dtype or tuple(value.shape) != tuple(shape):
        raise ValueError(
            f"`{name}` must be {dtype} of shape {tuple(shape)}, "
            f"got {value.dtype} of shape {tuple(value.shape)}."
        )
    if finite and not bool(value.isfinite().all()):
        raise ValueError(f"`{name}` must be finite, got NaN or infinity.")


def check_not_negative(name: str, value: Tensor) -> None:
    """Raise unless all entries of `value` are at least zero."""
    if not bool((value >= 0).all()):
        raise ValueError(f"`{name}` must not be negative, got {shown(float(value.min()))}.")


def shown(value: object) -> str:
    """Return a short text for `value`; nested values, which may be endless, give their type."""
    plain = isinstance(value, (str, bool, float, type(None))) or (
        isinstance(value, int) and abs(value) < _MAX_INT
    )
    return repr(value)[:50] if plain else type(value).__name__
