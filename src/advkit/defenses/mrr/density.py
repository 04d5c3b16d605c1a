"""Where the features of each class lie: a projection, a centre, and how far is far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from advkit.core.content import check_shape
from advkit.core.tensors import at_least_float32

DensityName = Literal["euclidean", "gaussian"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Density:
    """Densities of `k` defenders over features of `width`, each with one mode for each class.

    Attributes:
        projection: `(k, width, rank)`, the principal axes; those beyond a defender's own rank are
            zero.
        shift: `(k, 1, rank)`, the mean feature on these axes.
        centres: `(k, classes, rank)`.
        scales: `(k, classes, rank, rank)`, what makes the distance to a centre that of Mahalanobis;
            `None` for Euclidean distances.
        known: bool `(classes,)`, the classes that there were features of.
    """

    projection: Tensor
    shift: Tensor
    centres: Tensor
    scales: Tensor | None
    known: Tensor

    def check(self, count: int, width: int, classes: int, kind: DensityName) -> None:
        """Raise ValueError unless these are densities of `count` defenders that can be used.

        For tensors from a file, which may be damaged or made to do damage.
        """
        if self.projection.ndim != 3:
            raise ValueError(f"`projection` must have 3 axes, got {self.projection.ndim}")
        dtype, rank = self.projection.dtype, self.projection.shape[2]
        if dtype not in (torch.float32, torch.float64) or not 1 <= rank <= width:
            raise ValueError(f"`projection` must be on 1 to {width} axes, got {dtype} on {rank}")
        if (self.scales is not None) != (kind == "gaussian"):
            raise ValueError(f"`scales` must be those of the density {kind!r}")
        check_shape("projection", self.projection, dtype, (count, width, rank), finite=True)
        check_shape("shift", self.shift, dtype, (count, 1, rank), finite=True)
        check_shape("centres", self.centres, dtype, (count, classes, rank), finite=True)
        check_shape("known", self.known, torch.bool, (classes,))
        if self.scales is not None:
            shape = (count, classes, rank, rank)
            check_shape("scales", self.scales, dtype, shape, finite=True)

    def project(self, features: Tensor) -> Tensor:
        """Features `(k, n, width)` on the principal axes, `(k, n, rank)`."""
        return features @ self.projection.to(features) - self.shift.to(features)

    def distances(self, projected: Tensor, labels: Tensor) -> Tensor:
        """Of `(k, n, rank)` to the centres of `labels` `(n,)`: `(n, k)`, infinite if not known."""
        gaps = projected - self.centres[:, labels].to(projected)
        if self.scales is not None:
            gaps = _scaled(gaps, self.scales.to(projected), labels)
        distances: Tensor = torch.linalg.vector_norm(gaps, dim=2).T
        return distances.masked_fill(~self.known[labels][:, None], torch.inf)

    def first(self, count: int) -> Density:
        """Those of the first `count` defenders."""
        return Density(
            projection=self.projection[:count],
            shift=self.shift[:count],
            centres=self.centres[:count],
            scales=None if self.scales is None else self.scales[:count],
            known=self.known,
        )


def _scaled(gaps: Tensor, scales: Tensor, labels: Tensor) -> Tensor:
    """`gaps` `(k, n, rank)` times the scales of the `labels` `(n,)`, a class at a time."""
    out = torch.zeros_like(gaps)
    for label in torch.unique(labels).tolist():
        rows = (labels == label).nonzero().flatten()
        out = out.index_copy(1, rows, gaps[:, rows] @ scales[:, label])
    return out


def fit_density(
    features: Tensor, y: Tensor, classes: int, *, kind: DensityName, explained: float
) -> Density:
    """Densities of clean features.

    Args:
        features: `(k, n, width)`.
        y: true labels `(n,)`.
        classes: how many the victim has.
        kind: distance to the class mean, or in units of the class's covariance, shrunk as Ledoit
            and Wolf (2004) do, since a class may have fewer samples than axes.
        explained: share of the variance that the principal axes are to have.
    """
    exact, dtype = features.double(), at_least_float32(features).dtype
    axes = [_principal_axes(own, explained) for own in exact]
    rank = max(own.shape[1] for own in axes)
    projection = torch.stack([_padded(own, rank) for own in axes])
    shift = exact.mean(1, keepdim=True) @ projection
    projected = exact @ projection - shift
    counts = torch.bincount(y, minlength=classes)
    sums = projected.new_zeros(len(exact), classes, rank).index_add(1, y, projected)
    centres = sums / counts.clamp_min(1)[:, None]
    scales = None
    if kind == "gaussian":
        ranks = [own.shape[1] for own in axes]
        scales = torch.stack(
            [_scales(z, c, y, r) for z, c, r in zip(projected, centres, ranks, strict=True)]
        ).to(dtype)
    return Density(
        projection=projection.to(dtype),
        shift=shift.to(dtype),
        centres=centres.to(dtype),
        scales=scales,
        known=counts > 0,
    )


def _principal_axes(features: Tensor, explained: float) -> Tensor:
    """`(width, rank)`: the fewest axes that have the share `explained` of the variance."""
    centred = features - features.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    share = values.flip(0).clamp_min(0).cumsum(0)
    rank = 1 + int((share < explained * share[-1]).sum())
    axes: Tensor = vectors.flip(1)[:, : min(rank, len(values))]
    return axes


def _padded(axes: Tensor, rank: int) -> Tensor:
    return torch.nn.functional.pad(axes, (0, rank - axes.shape[1]))


def _scales(projected: Tensor, centres: Tensor, y: Tensor, rank: int) -> Tensor:
    """For each class the matrix `(all_axes, all_axes)` that turns gaps into Mahalanobis units."""
    full = projected.new_zeros(len(centres), projected.shape[1], projected.shape[1])
    for label in torch.unique(y).tolist():
        rows = (projected[y == label] - centres[label])[:, :rank]
        covariance, _ = ledoit_wolf(rows.cpu().numpy(), assume_centered=True)
        factor = torch.linalg.cholesky(torch.from_numpy(covariance).to(projected).inverse())
        full[label, :rank, :rank] = factor
    return full
