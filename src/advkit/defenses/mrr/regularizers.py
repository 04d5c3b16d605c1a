"""What keeps the features of a class together and those of two classes apart.

Each takes unit features `(n, width)`, a matrix of centres `(classes, width)` that is learned along,
and labels `(n,)`, and gives a scalar to go down.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

RegularizerName = Literal["nearest", "pcl", "center"]


def placed(centres: Tensor, kind: RegularizerName) -> Tensor:
    """Where the centres are: `"nearest"` keeps them on the unit sphere, the others do not."""
    return F.normalize(centres) if kind == "nearest" else centres


def regularizer(
    features: Tensor,
    centres: Tensor,
    y: Tensor,
    *,
    kind: RegularizerName,
    compactness: float,
    separation: float,
) -> Tensor:
    """The scalar of `LatentDefenders.regularizer`, weights included."""
    spread = _spread(features, centres, y)
    if kind == "nearest":
        return compactness * spread + separation * _towards_the_nearest(centres, y)
    if kind == "pcl":
        return compactness * (spread - _to_all_others(features, centres, y) + _off_sphere(centres))
    return compactness * spread


def _spread(features: Tensor, centres: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance of features to the centre of their class."""
    return (features - centres[y]).square().sum(1).mean()


def _towards_the_nearest(centres: Tensor, y: Tensor) -> Tensor:
    """Mean over `y` of -d^4 / 2 for unit centres, d being the distance to the nearest other one.

    Written as d^2 (s - 1) with the cosine s, as the authors' code has it.
    """
    with torch.no_grad():
        cosines = centres @ centres.T
        nearest = cosines.fill_diagonal_(-torch.inf).argmax(1)  # nearest on the sphere
    d2 = (centres - centres[nearest]).square().sum(1)
    s = (centres * centres[nearest]).sum(1)
    value: Tensor = (d2 * (s - 1))[y].mean()
    return value


def _to_all_others(features: Tensor, centres: Tensor, y: Tensor) -> Tensor:
    """Mean over the features of the summed squared distances to the centres of other classes."""
    squares = (features[:, None] - centres).square().sum(2)
    return (squares.sum(1) - squares.gather(1, y[:, None]).squeeze(1)).mean()


def _off_sphere(centres: Tensor) -> Tensor:
    """Summed squared difference of the centres' lengths to one."""
    lengths: Tensor = torch.linalg.vector_norm(centres, dim=1)
    return (lengths - 1).square().sum()
