"""Checks of what a checkpoint holds, made before anything of a run is changed.

A file is compared with the run that reads it: what the run would write now has the types, keys and
shapes that the file must have. All checks raise ValueError and name the part of the file.
"""

from __future__ import annotations

import copy
import math
import random
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advkit.training.history import Epoch

_MOST = 2**53  # beyond it, floats do not count in steps of one
_WORDS = 624  # of the state of a Mersenne twister
_MAY_BE_ZERO = ("last_epoch", "T_cur", "lr", "_last_lr")  # numbers that a schedule moves


def checked_epochs(found: object) -> list[Epoch]:
    """Return the epochs of a checkpoint.

    Raises:
        ValueError: they are not the epochs 1, 2, 3 and so on, or hold other than numbers.
    """
    if not isinstance(found, list):
        raise ValueError(f"epochs must be a list, got {type(found).__name__}")
    for i, plain in enumerate(found):
        own = {"epoch": 0, "loss": -1.0, "seconds": 0.0, "lr": -1.0, "evaluated": None}
        check_keys(f"epochs[{i}]", plain, own)
        evaluated = plain["evaluated"]
        if not isinstance(evaluated, dict):
            raise ValueError(f"epochs[{i}].evaluated must be a dict, got {_shown(evaluated)}")
        for name, value in evaluated.items():
            if not isinstance(name, str) or not isinstance(value, float):
                raise ValueError(f"epochs[{i}].evaluated must hold floats by name")
        check_like(f"epochs[{i}]", {**plain, "evaluated": None}, own)
        if plain["epoch"] != i + 1:
            raise ValueError(f"epochs[{i}] must have the number {i + 1}, got {plain['epoch']}")
    return [Epoch(**plain) for plain in found]


def check_setup(found: object, own: Mapping[str, str]) -> None:
    """Raise unless the run that `found` describes was begun as that of `own`, in words by name."""
    if isinstance(found, Mapping):
        for name in own:
            if isinstance(found.get(name), str) and found[name] != own[name]:
                raise ValueError(f"it was begun with {name} {found[name]}, not {own[name]}")
    check_like("setup", found, own)


def check_state(name: str, found: object, own: Mapping[str, Any]) -> None:
    """Raise unless `found` can be the state of the module that has the state `own`.

    What a module keeps besides tensors is left to the module.
    """
    check_keys(name, found, own)
    assert isinstance(found, Mapping)
    for key, value in own.items():
        if isinstance(value, Tensor):
            check_like(f"{name}.{key}", found[key], value)


def check_optimizer(found: object, optimizer: torch.optim.Optimizer) -> None:
    """Raise unless `found` can be the state of `optimizer` after some steps."""
    own = optimizer.state_dict()
    check_keys("optimizer", found, own)
    assert isinstance(found, Mapping)
    groups, moments = found["param_groups"], found["state"]
    check_like("optimizer.param_groups", groups, own["param_groups"])
    if [group["params"] for group in groups] != [g["params"] for g in own["param_groups"]]:
        raise ValueError("optimizer.param_groups must number the parameters as this run does")
    if not isinstance(moments, Mapping):
        raise ValueError(f"optimizer.state must be a dict, got {type(moments).__name__}")
    if not moments:  # before the first step
        return
    up, down = (_after_a_step(optimizer, slope) for slope in (1.0, -1.0))
    for key, values in moments.items():
        if key not in up:
            raise ValueError(
                f"optimizer.state has {_shown(key)}, which is not a parameter with one"
            )
        name = f"optimizer.state[{key}]"
        check_like(name, values, up[key])
        for part, value in up[key].items():
            if isinstance(value, Tensor) and bool(
                (value >= 0).all() & (down[key][part] >= 0).all()
            ):
                _check_not_negative(f"{name}.{part}", values[part])


def _after_a_step(optimizer: torch.optim.Optimizer, slope: float) -> dict[int, dict[str, Any]]:
    """Return what a copy of `optimizer` keeps for each parameter after a step from zero."""
    probe = copy.deepcopy(optimizer)
    probe.state.clear()
    for group in probe.param_groups:
        for parameter in group["params"]:
            parameter.detach().zero_()
            parameter.grad = torch.full_like(parameter, slope)
    probe.step()
    state: dict[int, dict[str, Any]] = probe.state_dict()["state"]
    return state


def check_random(
    found: object, generators: Sequence[torch.Generator], device: torch.device
) -> None:
    """Raise unless `found` holds states of the global random generators and of `generators`.

    Each state is set on a new generator; the global ones and `generators` stay as they are.
    """
    check_keys("random", found, ("torch", "cuda", "numpy", "python", "generators"))
    assert isinstance(found, Mapping)
    try:
        _set_numpy(found["numpy"])
        _set_python(found["python"])
        torch.Generator().set_state(found["torch"])
        if device.type == "cuda" and found["cuda"] is not None:
            torch.Generator(device).set_state(found["cuda"])
        for own, state in zip(generators, found["generators"], strict=True):
            torch.Generator(own.device).set_state(state)
    except Exception as error:  # generators raise errors of all kinds
        raise ValueError(f"random must hold states of generators: {error}") from error


def _set_numpy(found: tuple[Any, ...]) -> None:
    """Set a new generator of NumPy to the state `found`, which NumPy itself would believe."""
    kind, words, at, has_gauss, gauss = found
    check_like("numpy", words, torch.zeros(_WORDS, dtype=torch.int64))
    for number, most in ((at, _WORDS), (has_gauss, 1), (int(words.max()), 2**32 - 1)):
        if type(number) is not int or not 0 <= number <= most:
            raise ValueError(f"numpy must hold ints from 0 to {most}, got {_shown(number)}")
    _check_not_negative("numpy", words)
    check_like("numpy", gauss, -1.0)
    np.random.RandomState().set_state((kind, words.numpy().astype(np.uint32), at, has_gauss, gauss))


def _set_python(found: tuple[Any, ...]) -> None:
    """Set a new generator of Python to the state `found`."""
    _, _, gauss = found
    if gauss is not None:
        check_like("python", gauss, -1.0)
    random.Random().setstate(found)


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
        raise ValueError(f"{name} must be {_shown(own)}, got {_shown(found)}")


def check_keys(name: str, found: object, wanted: Mapping[str, Any] | Sequence[str]) -> None:
    """Raise unless `found` is a mapping with the keys `wanted` and no others."""
    if not isinstance(found, Mapping):
        raise ValueError(f"{name} must be a dict, got {type(found).__name__}")
    differing = [
        key for key in {**dict.fromkeys(wanted), **found} if (key in found) != (key in wanted)
    ]
    if differing:
        there = "has" if differing[0] in found else "lacks"
        raise ValueError(f"{name} {there} {_shown(differing[0])}")


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
        raise ValueError(f"{name} must be a number like {own!r}, got {_shown(found)}")
    assert isinstance(found, (int, float))
    least = -math.inf if own < 0 else int(kinds == (int,) and own > 0)
    most = _MOST if isinstance(found, int) else sys.float_info.max
    if not least <= found <= most:
        raise ValueError(f"{name} must be finite and at least {least}, got {_shown(found)}")


def _check_tensor(name: str, found: object, own: Tensor) -> None:
    if not isinstance(found, Tensor) or found.device.type != "cpu" or found.layout != own.layout:
        raise ValueError(f"{name} must be a tensor, got {type(found).__name__}")
    if found.dtype != own.dtype or found.shape != own.shape:
        raise ValueError(
            f"{name} must be {own.dtype} of shape {tuple(own.shape)}, "
            f"got {found.dtype} of shape {tuple(found.shape)}"
        )
    if bool(own.isfinite().all()) and not bool(found.isfinite().all()):
        raise ValueError(f"{name} is NaN or infinite")
    whole = not own.is_floating_point() and not own.is_complex()
    if whole and bool((own >= 0).all()):
        _check_not_negative(name, found)


def _check_not_negative(name: str, found: Tensor) -> None:
    if not bool((found >= 0).all()):
        raise ValueError(f"{name} has negative values")


def _shown(value: object) -> str:
    """Return a short form of `value`; what is nested may be endless, and is named by its type."""
    plain = isinstance(value, (str, bool, float, type(None))) or (
        isinstance(value, int) and abs(value) < _MOST
    )
    return repr(value)[:50] if plain else type(value).__name__
