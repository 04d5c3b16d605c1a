"""Checks of what a file holds, made before anything is built from it or changed by it.

All of them raise ValueError and name the part of the file. None of them follows what is nested
deeper than what is wanted.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_MOST = 2**53  # beyond it, floats do not count in steps of one
_MAY_BE_ZERO = ("last_epoch", "T_cur", "lr", "_last_lr")  # numbers that a schedule moves
_SHARES = ("betas", "momentum", "max_momentum", "base_momentum")  # of what an optimizer keeps


def check_like(name: str, found: object, own: object) -> None:
    """Raise unless `found` is built as `own` is.

    Types, keys, lengths, dtypes and shapes are those of `own`, and so are strings and bools.
    Numbers are finite, and not negative where those of `own` are not.
    """
    if isinstance(own, Tensor):
        _check_tensor(name, found, own)
    elif isinstance(own, Mapping):
        _check_mapping(name, found, own)
    elif isinstance(own, (list, tuple)):
        if not isinstance(found, type(own)) or len(found) != len(own):
            raise ValueError(f"{name} must be a {type(own).__name__} of {len(own)}")
        for i, (value, wanted) in enumerate(zip(found, own, strict=True)):
            check_like(f"{name}[{i}]", value, wanted)
    elif isinstance(own, (int, float)) and not isinstance(own, bool):
        _check_number(name, found, own)
    elif type(found) is not type(own) or found != own:
        raise ValueError(f"{name} must be {shown(own)}, got {shown(found)}")


def check_keys(name: str, found: object, wanted: Mapping[str, Any] | Sequence[str]) -> None:
    """Raise unless `found` is a mapping with the keys `wanted` and no others."""
    if not isinstance(found, Mapping):
        raise ValueError(f"{name} must be a dict, got {type(found).__name__}")
    differing = [
        key for key in {**dict.fromkeys(wanted), **found} if (key in found) != (key in wanted)
    ]
    if differing:
        there = "has" if differing[0] in found else "lacks"
        raise ValueError(f"{name} {there} {shown(differing[0])}")


def check_state(name: str, found: object, own: Mapping[str, Any]) -> None:
    """Raise unless `found` can be the state of the module that has the state `own`.

    What a module keeps besides tensors is left to the module.
    """
    check_keys(name, found, own)
    assert isinstance(found, Mapping)
    for key, value in own.items():
        if isinstance(value, Tensor):
            check_like(f"{name}.{key}", found[key], value)


def load_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a state dict into `module`; after an error the module is as it was.

    Raises:
        ValueError: it is not one of such a module.
    """
    before = copy.deepcopy(module.state_dict())
    try:
        module.load_state_dict(state)
    except BaseException as error:
        module.load_state_dict(before)
        if isinstance(error, Exception):  # keys and values of other types fail in any way
            raise ValueError(str(error)) from error
        raise


def _check_mapping(name: str, found: object, own: Mapping[Any, Any]) -> None:
    if all(isinstance(key, str) for key in own):
        check_keys(name, found, own)
        assert isinstance(found, Mapping)
        for key, value in own.items():
            check_like(f"{name}.{key}", found[key], value)
        return
    if not isinstance(found, type(own)):  # numbers by number, such as the epochs of a schedule
        raise ValueError(f"{name} must be a {type(own).__name__}, got {type(found).__name__}")
    for pair in found.items():
        check_like(name, pair, (0, 0))


def _check_number(name: str, found: object, own: float) -> None:
    part = name.rstrip("[]0123456789").rpartition(".")[2]
    kinds = (int,) if isinstance(own, int) and part not in _MAY_BE_ZERO else (int, float)
    if type(found) not in kinds:
        raise ValueError(f"{name} must be a number like {own!r}, got {shown(found)}")
    assert isinstance(found, (int, float))
    least = -math.inf if own < 0 else int(kinds == (int,) and own > 0)
    most = _MOST if isinstance(found, int) else sys.float_info.max
    if not least <= found <= (1 if part in _SHARES else most):
        raise ValueError(f"{name} must be a finite number of its range, got {shown(found)}")


def _check_tensor(name: str, found: object, own: Tensor) -> None:
    if not isinstance(found, Tensor) or found.device.type != "cpu" or found.layout != own.layout:
        raise ValueError(f"{name} must be a tensor, got {type(found).__name__}")
    check_shape(name, found, own.dtype, own.shape)
    if bool(own.isfinite().all()) and not bool(found.isfinite().all()):
        raise ValueError(f"{name} must be finite, has NaN or infinity")
    whole = not own.is_floating_point() and not own.is_complex()
    if whole and bool((own >= 0).all()):
        check_not_negative(name, found)


def check_shape(
    name: str, found: Tensor, dtype: torch.dtype, shape: Sequence[int], *, finite: bool = False
) -> None:
    """Raise unless the tensor `found` has that dtype and shape, and if asked, is finite."""
    if found.dtype != dtype or tuple(found.shape) != tuple(shape):
        raise ValueError(
            f"{name} must be {dtype} of shape {tuple(shape)}, "
            f"got {found.dtype} of shape {tuple(found.shape)}"
        )
    if finite and not bool(found.isfinite().all()):
        raise ValueError(f"{name} must be finite, has NaN or infinity")


def check_not_negative(name: str, found: Tensor) -> None:
    """Raise unless all values of `found` are at least zero."""
    if not bool((found >= 0).all()):
        raise ValueError(f"{name} must not be negative")


def shown(value: object) -> str:
    """Return a short form of `value`; what is nested may be endless, and is named by its type."""
    plain = isinstance(value, (str, bool, float, type(None))) or (
        isinstance(value, int) and abs(value) < _MOST
    )
    return repr(value)[:50] if plain else type(value).__name__
