"""Regularizers that gather the features of a class and separate those of different classes.

Each takes unit features `(n, width)`, learned centers `(classes, width)` and labels `(n,)`, and
returns a scalar to minimize.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

RegularizerName = Literal["nearest", "pcl", "center"]


def constrain_centers(centers: Tensor, kind: RegularizerName) -> Tensor:
    """Return the centers that `kind` uses: on the unit sphere for `"nearest"`, else unchanged."""
    return F.normalize(centers) if kind == "nearest" else centers


def regularizer(
    features: Tensor,
    centers: Tensor,
    y: Tensor,
    *,
    kind: RegularizerName,
    compactness: float,
    separation: float,
) -> Tensor:
    """Return the weighted regularizer of `LatentDefenders.regularizer`, a scalar."""
    spread = _distance_to_own_center(features, centers, y)
    if kind == "nearest":
        return compactness * spread + separation * _nearest_center_term(centers, y)
    if kind == "pcl":
        return compactness * (
            spread - _distance_to_other_centers(features, centers, y) + _norm_penalty(centers)
        )
    return compactness * spread


def _distance_to_own_center(features: Tensor, centers: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared distance of features to the center of their class."""
    return (features - centers[y]).square().sum(1).mean()


def _nearest_center_term(centers: Tensor, y: Tensor) -> Tensor:
    """Return the mean over `y` of -d^4 / 2, d being the distance to the nearest other unit center.

    It is computed as d^2 (s - 1) with the cosine s, as in the authors' code.
    """
    with torch.no_grad():
        cosines = centers @ centers.T
        nearest = cosines.fill_diagonal_(-torch.inf).argmax(1)  # nearest on the sphere
    d2 = (centers - centers[nearest]).square().sum(1)
    s = (centers * centers[nearest]).sum(1)
    value: Tensor = (d2 * (s - 1))[y].mean()
    return value


def _distance_to_other_centers(features: Tensor, centers: Tensor, y: Tensor) -> Tensor:
    """Return the mean summed squared distance of features to the centers of other classes."""
    squares = (features[:, None] - centers).square().sum(2)
    return (squares.sum(1) - squares.gather(1, y[:, None]).squeeze(1)).mean()


def _norm_penalty(centers: Tensor) -> Tensor:
    """Return the summed squared difference between the norms of the centers and 1."""
    lengths: Tensor = torch.linalg.vector_norm(centers, dim=1)
    return (lengths - 1).square().sum()
