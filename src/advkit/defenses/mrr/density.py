"""Density of the features of each class: a projection, a center and a distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
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
        centers: `(k, classes, rank)`, the mean feature of each class.
        scales: `(k, classes, rank, rank)`, matrices that make the distance to a center the
            Mahalanobis distance; `None` for Euclidean distances.
        known: bool `(classes,)`, the classes with features.
    """

    projection: Tensor
    shift: Tensor
    centers: Tensor
    scales: Tensor | None
    known: Tensor

    def check(self, count: int, width: int, classes: int, kind: DensityName) -> None:
        """Raise ValueError unless these are valid densities of `count` defenders.

        It checks tensors from a file, which may be damaged or malicious.
        """
        if self.projection.ndim != 3:
            raise ValueError(f"`projection` must have 3 axes, got {self.projection.ndim}.")
        dtype, rank = self.projection.dtype, self.projection.shape[2]
        if dtype not in (torch.float32, torch.float64) or not 1 <= rank <= width:
            raise ValueError(f"`projection` must be on 1 to {width} axes, got {dtype} on {rank}.")
        if (self.scales is not None) != (kind == "gaussian"):
            raise ValueError(f"`scales` must be those of the density {kind!r}.")
        check_shape("projection", self.projection, dtype, (count, width, rank), finite=True)
        check_shape("shift", self.shift, dtype, (count, 1, rank), finite=True)
        check_shape("centers", self.centers, dtype, (count, classes, rank), finite=True)
        check_shape("known", self.known, torch.bool, (classes,))
        if self.scales is not None:
            shape = (count, classes, rank, rank)
            check_shape("scales", self.scales, dtype, shape, finite=True)

    def project(self, features: Tensor) -> Tensor:
        """Project features `(k, n, width)` onto the principal axes, `(k, n, rank)`."""
        return features @ self.projection.to(features) - self.shift.to(features)

    def distances(self, projected: Tensor, labels: Tensor) -> Tensor:
        """Return the distances `(n, k)` of projected features to the centers of `labels`.

        Args:
            projected: `(k, n, rank)`.
            labels: classes `(n,)`. The distance is infinite if a class is not known.
        """
        gaps = projected - self.centers[:, labels].to(projected)
        if self.scales is not None:
            gaps = _apply_scales(gaps, self.scales.to(projected), labels)
        distances: Tensor = torch.linalg.vector_norm(gaps, dim=2).T
        return distances.masked_fill(~self.known[labels][:, None], torch.inf)

    def first(self, count: int) -> Density:
        """Return the densities of the first `count` defenders."""
        return Density(
            projection=self.projection[:count],
            shift=self.shift[:count],
            centers=self.centers[:count],
            scales=None if self.scales is None else self.scales[:count],
            known=self.known,
        )


def _apply_scales(gaps: Tensor, scales: Tensor, labels: Tensor) -> Tensor:
    """Multiply `gaps` `(k, n, rank)` by the scales of `labels` `(n,)`, one class at a time."""
    out = torch.zeros_like(gaps)
    for label in torch.unique(labels).tolist():
        rows = (labels == label).nonzero().flatten()
        out = out.index_copy(1, rows, gaps[:, rows] @ scales[:, label])
    return out


def fit_density(
    features: Tensor, y: Tensor, classes: int, *, kind: DensityName, explained: float
) -> Density:
    """Fit densities to clean features.

    Args:
        features: `(k, n, width)`.
        y: true labels `(n,)`.
        classes: number of classes of the victim.
        kind: `"euclidean"`, the distance to the class mean, or `"gaussian"`, in units of the
            class's covariance. The covariance is shrunk as in Ledoit and Wolf (2004), since a class
            may have fewer samples than axes.
        explained: share of the variance that the principal axes explain.
    """
    features64, dtype = features.double(), at_least_float32(features).dtype
    axes = [_principal_axes(rows, explained) for rows in features64]
    rank = max(basis.shape[1] for basis in axes)
    projection = torch.stack([_pad(basis, rank) for basis in axes])
    shift = features64.mean(1, keepdim=True) @ projection
    projected = features64 @ projection - shift
    counts = torch.bincount(y, minlength=classes)
    sums = projected.new_zeros(len(features64), classes, rank).index_add(1, y, projected)
    centers = sums / counts.clamp_min(1)[:, None]
    scales = None
    if kind == "gaussian":
        ranks = [basis.shape[1] for basis in axes]
        scales = torch.stack(
            [_scales(z, c, y, r) for z, c, r in zip(projected, centers, ranks, strict=True)]
        ).to(dtype)
    return Density(
        projection=projection.to(dtype),
        shift=shift.to(dtype),
        centers=centers.to(dtype),
        scales=scales,
        known=counts > 0,
    )


def _principal_axes(features: Tensor, explained: float) -> Tensor:
    """Return the fewest axes `(width, rank)` that explain the share `explained` of the variance."""
    centered = features - features.mean(0)
    values, vectors = torch.linalg.eigh(centered.T @ centered)
    cumulative = values.flip(0).clamp_min(0).cumsum(0)
    rank = 1 + int((cumulative < explained * cumulative[-1]).sum())
    axes: Tensor = vectors.flip(1)[:, : min(rank, len(values))]
    return axes


def _pad(axes: Tensor, rank: int) -> Tensor:
    return torch.nn.functional.pad(axes, (0, rank - axes.shape[1]))


def _scales(projected: Tensor, centers: Tensor, y: Tensor, rank: int) -> Tensor:
    """Return for each class the matrix `(all_axes, all_axes)` that whitens its features."""
    from sklearn.covariance import ledoit_wolf  # here, since it takes a second to import

    factors = projected.new_zeros(len(centers), projected.shape[1], projected.shape[1])
    for label in torch.unique(y).tolist():
        rows = (projected[y == label] - centers[label])[:, :rank]
        covariance, _ = ledoit_wolf(rows.cpu().numpy(), assume_centered=True)
        factor = torch.linalg.cholesky(torch.from_numpy(covariance).to(projected).inverse())
        factors[label, :rank, :rank] = factor
    return factors
