"""Operations on the rows of a `NamedTuple` of tensors, one row for each sample."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from advkit.core.norms import per_sample
from advkit.core.tensors import asynchronous

Rows = TypeVar("Rows", bound=tuple[Tensor, ...])


def select(rows: Rows, mask: Tensor) -> Rows:
    """Return the rows of a `NamedTuple` of tensors that `mask` selects, a mask or indices."""
    return type(rows)(*(part[mask] for part in rows))


def update_rows(rows: tuple[Tensor, ...], where: Tensor, values: tuple[Tensor, ...]) -> None:
    """Write `values` into the samples `where` of `rows`, in place."""
    for part, new in zip(rows, values, strict=True):
        part[where] = new.to(part.dtype)


def choose(better: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the rows of `new` where bool `better` `(n,)` is true, and those of `old` elsewhere."""
    if not asynchronous(better.device) and better.all():
        return [n.clone() for n in new]  # records are written to, iterates are not
    pairs = zip(new, old, strict=True)
    return [torch.where(per_sample(better, n), n, o) for n, o in pairs]
