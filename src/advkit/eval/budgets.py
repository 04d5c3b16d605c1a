"""What attacks have for budgets: one for all inputs, one for each input, or none."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from advkit.core.norms import ORDER, Norm


def budget_words(norm: str, eps: float) -> str:
    """A budget as tables name it."""
    return f"{norm} {eps:.6g}"


def distinct_budgets(attacks: Iterable[Any]) -> list[tuple[Norm, float]]:
    """Norm and `eps` of those `attacks` with one budget for all inputs, each pair once."""
    pairs = ((getattr(attack, "norm", None), getattr(attack, "eps", None)) for attack in attacks)
    found = {
        (norm, float(eps)): None for norm, eps in pairs if norm in ORDER and isinstance(eps, Real)
    }
    return list(found)


def radius_of(attack: Any) -> Tensor:
    """The budget of `attack`, one for all samples or `(n,)`; inf without one."""
    eps = getattr(attack, "eps", None)
    if isinstance(eps, Tensor):
        return eps.detach().cpu().double()
    return torch.tensor(math.inf if eps is None else float(eps), dtype=torch.float64)


def check_length(attack: Any, total: int | None) -> None:
    """Raise if `attack` has an `eps` for each sample, but not for `total` of them."""
    eps = getattr(attack, "eps", None)
    if isinstance(eps, Tensor) and total not in (None, len(eps)):
        raise ValueError(f"eps has {len(eps)} values, but x has {total} samples")


def part_of(attack: Any, rows: Tensor) -> Any:
    """`attack` for the samples `rows` of the data, its `eps` cut if it has one for each sample."""
    eps = getattr(attack, "eps", None)
    if not isinstance(eps, Tensor):
        return attack
    if rows[-1] >= len(eps):
        raise ValueError(
            f"eps has {len(eps)} values, but x has {int(rows[-1]) + 1} samples or more"
        )
    return _cut(attack, rows)


def _cut(attack: Any, rows: Tensor) -> Any:
    """`attack` with its `eps` cut, or with that of the attack that it is built around."""
    own = {field.name for field in dataclasses.fields(attack) if field.init}
    if "eps" not in own and "attack" in own:
        return dataclasses.replace(attack, attack=_cut(attack.attack, rows))
    return dataclasses.replace(attack, eps=attack.eps[rows])
