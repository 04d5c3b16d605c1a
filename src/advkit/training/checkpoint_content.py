"""Checks of what a checkpoint holds, made before anything of a run is changed.

A file is compared with the run that reads it: what the run would write now has the types, keys and
shapes that the file must have. All checks raise ValueError and name the part of the file.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advkit.core.content import check_keys, check_like, check_not_negative, shown
from advkit.training.history import Epoch

_WORDS = 624  # of the state of a Mersenne twister


def checked_epochs(found: object) -> list[Epoch]:
    """Return the epochs of a checkpoint.

    Raises:
        ValueError: they are not the epochs 1, 2, 3 and so on, or hold other than numbers.
    """
    if not isinstance(found, list):
        raise ValueError(f"`epochs` must be a list, got {type(found).__name__}")
    for i, plain in enumerate(found):
        own = {"epoch": 0, "loss": -1.0, "seconds": 0.0, "lr": -1.0, "evaluated": None}
        check_keys(f"epochs[{i}]", plain, own)
        evaluated = plain["evaluated"]
        if not isinstance(evaluated, dict):
            raise ValueError(f"epochs[{i}].evaluated must be a dict, got {shown(evaluated)}")
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


def is_of_torch(part: object) -> bool:
    """Return True if `part`, an optimizer or a scheduler, keeps only what torch has it keep.

    A scheduler may hold others, and objects that compute its factors; functions keep nothing.
    """
    if isinstance(part, FunctionType):
        return True
    inner = (*getattr(part, "_schedulers", ()), *getattr(part, "lr_lambdas", ()))
    return type(part).__module__.startswith("torch.") and all(map(is_of_torch, inner))


def check_optimizer(found: object, optimizer: torch.optim.Optimizer) -> None:
    """Raise unless `found` can be the state of `optimizer` after some steps."""
    own = optimizer.state_dict()
    check_keys("optimizer", found, own)
    assert isinstance(found, Mapping)
    groups, moments = found["param_groups"], found["state"]
    check_like("optimizer.param_groups", groups, own["param_groups"])
    if [group["params"] for group in groups] != [g["params"] for g in own["param_groups"]]:
        raise ValueError("`optimizer.param_groups` must number the parameters as this run does")
    if not isinstance(moments, Mapping):
        raise ValueError(f"`optimizer.state` must be a dict, got {type(moments).__name__}")
    if not moments:  # before the first step
        return
    up, down = (_after_a_step(optimizer, slope) for slope in (1.0, -1.0))
    for key, values in moments.items():
        if key not in up:
            raise ValueError(f"optimizer.state has {shown(key)}, which is not a parameter with one")
        name = f"optimizer.state[{key}]"
        check_like(name, values, up[key])
        for part, value in up[key].items():
            if isinstance(value, Tensor) and bool(
                (value >= 0).all() & (down[key][part] >= 0).all()
            ):
                check_not_negative(f"{name}.{part}", values[part])


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
        raise ValueError(f"`random` must hold states of generators: {error}") from error


def _set_numpy(found: tuple[Any, ...]) -> None:
    """Set a new generator of NumPy to the state `found`, which NumPy itself would believe."""
    kind, words, at, has_gauss, gauss = found
    check_like("numpy", words, torch.zeros(_WORDS, dtype=torch.int64))
    for number, most in ((at, _WORDS), (has_gauss, 1), (int(words.max()), 2**32 - 1)):
        if type(number) is not int or not 0 <= number <= most:
            raise ValueError(f"`numpy` must hold ints from 0 to {most}, got {shown(number)}")
    check_not_negative("numpy", words)
    check_like("numpy", gauss, -1.0)
    np.random.RandomState().set_state((kind, words.numpy().astype(np.uint32), at, has_gauss, gauss))


def _set_python(found: tuple[Any, ...]) -> None:
    """Set a new generator of Python to the state `found`."""
    _, _, gauss = found
    if gauss is not None:
        check_like("python", gauss, -1.0)
    random.Random().setstate(found)
