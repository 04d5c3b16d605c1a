"""Windows of the Square attack: boxes of features, and the bumps that fill them."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.core.norms import Norm, lp_norm


class Space(NamedTuple):
    """Layout of a sample's features: channels and the axes of a space."""

    channels: int
    sides: tuple[int, ...]

    @staticmethod
    def of(x: Tensor) -> Space:
        """Return the layout of `x`; a table `(n, features)` has one channel and one axis."""
        return Space(1, x.shape[1:]) if x.ndim == 2 else Space(x.shape[1], x.shape[2:])

    def box(self, coverage: float, min_side: int = 1) -> tuple[int, ...]:
        """Return the sides of a box that covers `coverage` of the space, in its proportions."""
        scale = coverage ** (1 / len(self.sides))
        return tuple(max(min(min_side, side), round(scale * side)) for side in self.sides)

    def window(self, u: Tensor, box: tuple[int, ...]) -> Tensor:
        """Return the indices of the features of a box at a random position in a channel.

        Args:
            u: random numbers in [0, 1), `(n, axes)`.
            box: sides of the box.

        Returns:
            int64 `(n, features of the box)`.
        """
        positions = torch.tensor([s - b + 1 for s, b in zip(self.sides, box, strict=True)])
        corner = (u.double() * positions.to(u.device)).long()
        strides, offsets = _strides_and_offsets(self.sides, box)
        return (corner * strides.to(u.device)).sum(1, keepdim=True) + offsets.to(u.device)


@lru_cache
def _strides_and_offsets(sides: tuple[int, ...], box: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the stride of each axis, and the offsets of the features of a box."""
    strides = torch.tensor([math.prod(sides[j + 1 :]) for j in range(len(box))])
    axes = torch.meshgrid(*(torch.arange(b) for b in box), indexing="ij")
    return strides, (torch.stack(axes, -1).flatten(0, -2) * strides).sum(1)


@lru_cache
def split_bumps(sides: tuple[int, ...], norm: Norm) -> Tensor:
    """Return a positive next to a negative bump along each axis, `(axes, features)`.

    Each pair has length 1 in `norm`.
    """
    bumps = []
    for axis, side in enumerate(sides):
        halves = [
            bump((*sides[:axis], part, *sides[axis + 1 :]))
            for part in (side // 2, side - side // 2)
        ]
        whole = torch.cat([halves[0], -halves[1]], dim=axis).flatten()
        bumps.append(whole / lp_norm(whole[None], norm))
    return torch.stack(bumps)


def bump(sides: tuple[int, ...]) -> Tensor:
    """Return a pyramid of inverse squares around the center of a box (eq. 2 of the paper)."""
    offsets = [(torch.arange(side) - side // 2).abs() for side in sides]
    ring = torch.stack(torch.meshgrid(*offsets, indexing="ij")).amax(0)
    steps = 1 / torch.arange(1, max(side // 2 for side in sides) + 2).square()
    return steps.flip(0).cumsum(0).flip(0)[ring]
