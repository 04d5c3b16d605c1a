"""Copies of attacks with other options: seed, stop, batch size, budgets of selected samples."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from advkit.core.protocols import AnyAttack


def with_seed(attack: AnyAttack, seed: int) -> AnyAttack:
    """Return `attack` with another `seed`, if it has one."""
    if not hasattr(attack, "seed"):
        return attack
    return dataclasses.replace(attack, seed=seed)  # type: ignore[type-var]  # only those have one


def with_stop(attack: AnyAttack, stop: str) -> AnyAttack:
    """Return `attack` with its `stop` set, if it has one that is `None`."""
    if getattr(attack, "stop", stop) is not None:
        return attack
    return dataclasses.replace(attack, stop=stop)  # type: ignore[type-var]  # only those have one


def sending_at_most(attack: Any, batch_size: int) -> Any:
    """Return `attack` with its own `batch_size`, if it has one, limited to `batch_size`.

    The limit also holds for an attack that `attack` wraps.
    """
    fields = dataclasses.fields(attack) if dataclasses.is_dataclass(attack) else ()
    own = {field.name for field in fields if field.init}
    changes: dict[str, Any] = {}
    if "batch_size" in own and attack.batch_size > batch_size:
        changes["batch_size"] = batch_size
    if "attack" in own:
        inner = sending_at_most(attack.attack, batch_size)
        if inner is not attack.attack:
            changes["attack"] = inner
    return dataclasses.replace(attack, **changes) if changes else attack


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
    """Return `attack` with the values `rows` of its `eps`, or of the `eps` of a wrapped attack."""
    own = {field.name for field in dataclasses.fields(attack) if field.init}
    if "eps" not in own and "attack" in own:
        return dataclasses.replace(attack, attack=_cut_option(attack.attack, rows))
    return dataclasses.replace(attack, eps=attack.eps[rows])
