"""Random sets of positions of a sample, the supports of sparse perturbations.

A set is a row of `positions`, int64 `(n, k)`: in ascending order, filled up at the end with `size`,
the number of positions of a sample. Samples may have sets of different sizes, and the numbers that
a sample draws do not depend on the others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advkit.core.randomness import derived_keys, uniform


def random_positions(keys: Tensor, counts: Tensor, size: int) -> Tensor:
    """Draw sets of `counts` `(n,)` of `size` positions, each set with the same probability."""
    order = uniform(keys, size, torch.float32).argsort(dim=1, stable=True)
    return _filled_up(order[:, : _largest(counts)], counts, size).sort(dim=1).values


def random_part(keys: Tensor, positions: Tensor, counts: Tensor, size: int) -> Tensor:
    """Return a mask `(n, k)` of `counts` `(n,)` random positions of each set."""
    u = uniform(keys, positions.shape[1], torch.float32)
    order = u.masked_fill(positions == size, math.inf).argsort(dim=1, stable=True)
    return order.argsort(dim=1) < counts[:, None]


def random_positions_outside(keys: Tensor, positions: Tensor, counts: Tensor, size: int) -> Tensor:
    """Draw positions that are not in the sets, in time that does not depend on `size`.

    Args:
        keys: `(n,)` of the random draws.
        positions: the sets, `(n, k)`.
        counts: number of positions to draw, `(n,)`, at most half of those outside the set, or 1.
        size: number of positions of a sample.

    Returns:
        int64 `(n, largest count)`, distinct positions in random order, then `size`.
    """
    valid = positions < size
    ranks = _distinct(keys, counts, size - valid.sum(dim=1))
    columns = torch.arange(positions.shape[1], device=positions.device)
    free_before = torch.where(valid, positions - columns, size)
    drawn = ranks + torch.searchsorted(free_before, ranks, right=True)
    return _filled_up(drawn, counts, size)


def _distinct(keys: Tensor, counts: Tensor, limits: Tensor) -> Tensor:
    """Draw `counts` `(n,)` distinct integers below `limits` `(n,)`, as int64 `(n, largest count)`.

    Repeated ones are drawn again. No integer is treated in another way than the others, so that all
    sets have the same probability. Entries beyond a sample's count are arbitrary.
    """
    columns = torch.arange(_largest(counts), device=keys.device)

    def draw(round_keys: Tensor) -> Tensor:
        return (uniform(round_keys, len(columns), torch.float64) * limits[:, None]).long()

    drawn, i = draw(keys), 0
    while (repeated := _repeated(torch.where(columns < counts[:, None], drawn, ~columns))).any():
        i += 1
        drawn = torch.where(repeated, draw(derived_keys(keys, i)), drawn)
    return drawn


def _repeated(v: Tensor) -> Tensor:
    """Return a mask of the entries of `v` `(n, k)` that equal an earlier one of their row."""
    ordered, order = v.sort(dim=1, stable=True)
    same = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(v, dtype=torch.bool).scatter(1, order[:, 1:], same)


def _filled_up(positions: Tensor, counts: Tensor, size: int) -> Tensor:
    """Return `positions` `(n, k)` with `size` in place of those beyond `counts` `(n,)`."""
    columns = torch.arange(positions.shape[1], device=positions.device)
    return torch.where(columns < counts[:, None], positions, size)


def _largest(counts: Tensor) -> int:
    """Return the largest of `counts` `(n,)`, 0 for none."""
    return int(counts.max()) if len(counts) else 0
