"""Checks of the content of a checkpoint, made before a run is changed.

A file is compared with the run that reads it. It must have the types, keys and shapes of a
checkpoint that the run would write now. All checks raise ValueError and name the part of the file.
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

_STATE_WORDS = 624  # in the state of a Mersenne twister, which NumPy and Python use


def checked_epochs(value: object) -> list[Epoch]:
    """Return the epochs of a checkpoint.

    Raises:
        ValueError: they are not the epochs 1, 2, 3 and so on, or hold other than numbers.
    """
    if not isinstance(value, list):
        raise ValueError(f"`epochs` must be a list, got {type(value).__name__}.")
    for i, plain in enumerate(value):
        expected = {"epoch": 0, "loss": -1.0, "seconds": 0.0, "lr": -1.0, "metrics": None}
        check_keys(f"epochs[{i}]", plain, expected)
        metrics = plain["metrics"]
        if not isinstance(metrics, dict):
            raise ValueError(f"`epochs[{i}].metrics` must be a dict, got {shown(metrics)}.")
        for name, number in metrics.items():
            if not isinstance(name, str) or not isinstance(number, float):
                raise ValueError(
                    f"`epochs[{i}].metrics` must map strings to floats, "
                    f"got {shown(name)}: {shown(number)}."
                )
        check_like(f"epochs[{i}]", {**plain, "metrics": None}, expected)
        if plain["epoch"] != i + 1:
            raise ValueError(f"`epochs[{i}].epoch` must be {i + 1}, got {plain['epoch']}.")
    return [Epoch(**plain) for plain in value]


def check_setup(value: object, expected: Mapping[str, str]) -> None:
    """Raise unless the run that wrote `value` began with the settings `expected`, text by name."""
    if isinstance(value, Mapping):
        for name in expected:
            if isinstance(value.get(name), str) and value[name] != expected[name]:
                raise ValueError(f"it was written with {name} {value[name]}, not {expected[name]}.")
    check_like("setup", value, expected)


def is_of_torch(part: object) -> bool:
    """Return whether the state of `part`, an optimizer or a scheduler, is defined by torch alone.

    A scheduler may contain other schedulers, and objects that compute its factors. Functions have
    no state.
    """
    if isinstance(part, FunctionType):
        return True
    inner = (*getattr(part, "_schedulers", ()), *getattr(part, "lr_lambdas", ()))
    return type(part).__module__.startswith("torch.") and all(map(is_of_torch, inner))


def check_optimizer(value: object, optimizer: torch.optim.Optimizer) -> None:
    """Raise unless `value` can be the state of `optimizer` after some steps."""
    own = optimizer.state_dict()
    check_keys("optimizer", value, own)
    assert isinstance(value, Mapping)
    groups, moments = value["param_groups"], value["state"]
    check_like("optimizer.param_groups", groups, own["param_groups"])
    numbers = [group["params"] for group in groups]
    own_numbers = [group["params"] for group in own["param_groups"]]
    if numbers != own_numbers:
        raise ValueError(
            "`optimizer.param_groups` must number the parameters as this run does, "
            "got other numbers."
        )
    if not isinstance(moments, Mapping):
        raise ValueError(f"`optimizer.state` must be a dict, got {type(moments).__name__}.")
    if not moments:  # before the first step
        return
    up, down = (_after_a_step(optimizer, slope) for slope in (1.0, -1.0))
    for key, values in moments.items():
        if key not in up:
            raise ValueError(
                "`optimizer.state` must have numbers of trained parameters as keys, "
                f"got {shown(key)}."
            )
        name = f"optimizer.state[{key}]"
        check_like(name, values, up[key])
        for part, moment in up[key].items():
            if isinstance(moment, Tensor) and bool(
                (moment >= 0).all() & (down[key][part] >= 0).all()
            ):
                check_not_negative(f"{name}.{part}", values[part])


def _after_a_step(optimizer: torch.optim.Optimizer, slope: float) -> dict[int, dict[str, Any]]:
    """Return the state of each parameter in a copy of `optimizer` after one step from zero."""
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
    value: object, generators: Sequence[torch.Generator], device: torch.device
) -> None:
    """Raise unless `value` holds states of the global random generators and of `generators`.

    Each state is set on a new generator. The global ones and `generators` are not changed.
    """
    check_keys("random", value, ("torch", "cuda", "numpy", "python", "generators"))
    assert isinstance(value, Mapping)
    try:
        _set_numpy(value["numpy"])
        _set_python(value["python"])
        torch.Generator().set_state(value["torch"])
        if device.type == "cuda" and value["cuda"] is not None:
            torch.Generator(device).set_state(value["cuda"])
        for own, state in zip(generators, value["generators"], strict=True):
            torch.Generator(own.device).set_state(state)
    except Exception as error:  # generators raise errors of all kinds
        raise ValueError(f"`random` must hold states of random generators ({error}).") from error


def _set_numpy(state: tuple[Any, ...]) -> None:
    """Set a new NumPy generator to `state`, after checks that NumPy does not make itself."""
    kind, words, at, has_gauss, gauss = state
    check_like("numpy", words, torch.zeros(_STATE_WORDS, dtype=torch.int64))
    for number, most in ((at, _STATE_WORDS), (has_gauss, 1), (int(words.max()), 2**32 - 1)):
        if type(number) is not int or not 0 <= number <= most:
            raise ValueError(f"`numpy` must hold ints from 0 to {most}, got {shown(number)}.")
    check_not_negative("numpy", words)
    check_like("numpy", gauss, -1.0)
    np.random.RandomState().set_state((kind, words.numpy().astype(np.uint32), at, has_gauss, gauss))


def _set_python(state: tuple[Any, ...]) -> None:
    """Set a new Python generator to `state`."""
    _, _, gauss = state
    if gauss is not None:
        check_like("python", gauss, -1.0)
    random.Random().setstate(state)
