"""Options of attacks, and copies with others: seed, stop, batch size, budgets of samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from advkit.core.norms import in_unit
from advkit.core.protocols import AnyAttack


def measured_norm(attack: Any) -> str:
    """Return the norm of the distances of `attack`, empty if only its results tell it.

    An attack with `norm="l0"` and `unit="pixel"` measures in `"l0_pixel"`.
    """
    norm: Any = getattr(attack, "norm", "")
    return in_unit(norm, getattr(attack, "unit", ""))


def with_seed(attack: AnyAttack, seed: int) -> AnyAttack:
    """Return `attack` with another `seed`, which the attacks inside it get too."""
    changes: dict[str, Any] = _of_inner(attack, lambda inner: with_seed(inner, seed))
    if hasattr(attack, "seed"):
        changes["seed"] = seed
    copy: AnyAttack = _replaced(attack, changes)
    return copy


def with_stop(attack: AnyAttack, stop: str) -> AnyAttack:
    """Return `attack` with its `stop` set, if it has one that is `None`."""
    if getattr(attack, "stop", stop) is not None:
        return attack
    return dataclasses.replace(attack, stop=stop)  # type: ignore[type-var]  # only those have one


def starts_at_random(attack: object) -> bool:
    """Return whether `attack` starts at random: always, if it has a seed and no such option."""
    return bool(getattr(attack, "random_start", hasattr(attack, "seed")))


def sending_at_most(attack: Any, batch_size: int) -> Any:
    """Return `attack` with its own `batch_size`, if it has one, limited to `batch_size`.

    The limit also holds for attacks inside `attack`.
    """
    changes = _of_inner(attack, lambda inner: sending_at_most(inner, batch_size))
    if "batch_size" in _own(attack) and attack.batch_size > batch_size:
        changes["batch_size"] = batch_size
    return _replaced(attack, changes)


def check_length(attack: Any, total: int | None) -> None:
    """Raise if `attack` has an `eps` for each sample, but not for `total` samples."""
    eps = getattr(attack, "eps", None)
    if isinstance(eps, Tensor) and total not in (None, len(eps)):
        raise ValueError(
            f"`eps` must be a number or a tensor of shape ({total},), got shape ({len(eps)},)."
        )


def for_samples(attack: Any, rows: Tensor) -> Any:
    """Return `attack` for the samples `rows` of the data.

    If its `eps` has one value for each sample, the values of `rows` are selected.
    """
    eps = getattr(attack, "eps", None)
    if not isinstance(eps, Tensor):
        return attack
    if rows[-1] >= len(eps):
        raise ValueError(
            "`eps` must be a number or a tensor of one value for each sample, got "
            f"{len(eps)} values for {int(rows[-1]) + 1} samples or more."
        )
    return _cut_option(attack, rows)


def _cut_option(attack: Any, rows: Tensor) -> Any:
    """Return `attack` with the values `rows` of its `eps`, or of the `eps` of attacks inside it."""
    if "eps" in _own(attack):
        return dataclasses.replace(attack, eps=attack.eps[rows])
    return _replaced(attack, _of_inner(attack, lambda inner: _cut_option(inner, rows)))


def _own(attack: Any) -> set[str]:
    """Return the names of the arguments that create `attack`, if it is a dataclass."""
    fields = dataclasses.fields(attack) if dataclasses.is_dataclass(attack) else ()
    return {field.name for field in fields if field.init}


def _of_inner(attack: Any, change: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the arguments `attack` and `attacks` of `attack` after `change`, where it has them."""
    own, changes = _own(attack), {}
    if "attack" in own:
        changes["attack"] = change(attack.attack)
    if "attacks" in own:
        changes["attacks"] = tuple(change(inner) for inner in attack.attacks)
    return changes


def _replaced(attack: Any, changes: dict[str, Any]) -> Any:
    """Return `attack` with `changes`, the same object if nothing changes."""
    same = all(_is_same(getattr(attack, name), value) for name, value in changes.items())
    return attack if same else dataclasses.replace(attack, **changes)


def _is_same(old: Any, new: Any) -> bool:
    """Return whether an argument is the same object, or a tuple of the same objects."""
    if isinstance(old, tuple) and isinstance(new, tuple):
        return len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True))
    return old is new
