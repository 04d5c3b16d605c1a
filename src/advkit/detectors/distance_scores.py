"""Scores of a row by clean rows: how near they are, how dense, and in how many directions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from sklearn.covariance import ledoit_wolf

from advkit.core import checks
from advkit.detectors.features import Floats, Rows
from advkit.detectors.outlier_score import Ints, OutlierScore

_CHUNK = 256  # rows whose distances to all clean rows are in memory at once


class Mahalanobis(OutlierScore):
    """Minus the squared Mahalanobis distance to the nearest class (Lee et al., 2018).

    Lee, Lee, Lee and Shin (arXiv:1807.03888) fit a Gaussian to each class, all with one covariance,
    and score by the nearest, whatever class the model predicts. Without classes there is one
    Gaussian.

    Where we differ: there is one layer, the rows that are passed, and no noise is added to inputs
    (their "calibration"), which takes the model; and the covariance is shrunk, since that of
    probabilities, whose sum is one, is singular, and that of a thousand outputs of a hundred images
    as well.

    Args:
        shrinkage: how much of the covariance is replaced by the identity times its mean variance,
            in [0, 1]; `"ledoit_wolf"` for the share that Ledoit and Wolf (2004, Journal of
            Multivariate Analysis 88) estimate; 0 is the article's.
        fpr: share of the clean rows that `predict` takes for attacks, in [0, 1); of those that were
            learned from, so that of others it is somewhat more.

    Attributes:
        means_: centre of each class `(classes, width)`.
        shrinkage_: the share that was taken.
        offset_: the score below which `predict` gives -1.

    Example:
        >>> import numpy as np
        >>> from advkit.detectors import Mahalanobis
        >>> clean = np.random.default_rng(0).normal(size=(500, 2)) * [10, 1]
        >>> Mahalanobis().fit(clean).predict([[10.0, 0.0], [0.0, 10.0]])
        array([ 1, -1])
    """

    def __init__(
        self, shrinkage: float | Literal["ledoit_wolf"] = "ledoit_wolf", fpr: float = 0.05
    ) -> None:
        self.shrinkage = shrinkage
        self.fpr = fpr

    def _learn(self, rows: Rows, groups: Ints) -> Floats:
        self.means_ = _means(rows, groups)
        covariance, self.shrinkage_ = self._covariance(rows - self.means_[groups])
        variances, axes = np.linalg.eigh(covariance)
        if not variances[0] > variances[-1] * len(variances) * np.finfo(np.float64).eps:
            raise ValueError(
                "`outputs` must vary in each direction, else the covariance is singular: raise "
                f"shrinkage={self.shrinkage!r} or fit more rows, got n_samples = {len(rows)}"
            )
        self._whitening = axes / np.sqrt(variances)
        return self._score(rows)

    def _covariance(self, centred: Floats) -> tuple[Floats, float]:
        """The shrunk covariance `(width, width)` of `centred` rows, and the share of shrinkage."""
        if isinstance(self.shrinkage, str):
            checks.one_of("shrinkage", self.shrinkage, ("ledoit_wolf",))
            covariance, share = ledoit_wolf(centred)
            return covariance, float(share)
        checks.fraction("shrinkage", self.shrinkage)
        plain = centred.T @ centred / len(centred)
        identity = np.eye(len(plain)) * np.trace(plain) / len(plain)
        return (1 - self.shrinkage) * plain + self.shrinkage * identity, self.shrinkage

    def _score(self, rows: Rows) -> Floats:
        centres = self.means_ @ self._whitening
        found = [
            -cdist(part @ self._whitening, centres, "sqeuclidean").min(1) for part in _parts(rows)
        ]
        return np.concatenate(found)


class KernelDensity(OutlierScore):
    """Logarithm of a Gaussian kernel density of clean rows (Feinman et al., 2017).

    Feinman, Curtin, Shintre and Gardner (arXiv:1703.00410) take the density of the class that the
    model predicts, in its last hidden layer. The rows do not say what that class is, so the largest
    density of all classes counts here, which is never below theirs; without classes there is one
    density. They combine it with the uncertainty of dropout; here it stands alone.

    Args:
        bandwidth: standard deviation of the kernel, in units of the rows; positive. `"scott"` for
            n ** (-1 / (width + 4)), with n the mean number of rows of a class (Scott, 1992), times
            the root of the mean variance within classes. The article searches for its own.
        fpr: share of the clean rows that `predict` would take for attacks had it not learned from
            them, in [0, 1): the offset is that of densities of which each leaves out its own row.

    Attributes:
        bandwidth_: that was taken.
        offset_: the score below which `predict` gives -1.

    Example:
        >>> import numpy as np
        >>> from advkit.detectors import KernelDensity
        >>> clean = np.random.default_rng(0).normal(size=(200, 2)) + [[4, 0]]
        >>> KernelDensity().fit(clean).predict([[4.0, 0.0], [0.0, 0.0]])
        array([ 1, -1])
    """

    def __init__(self, bandwidth: float | Literal["scott"] = "scott", fpr: float = 0.05) -> None:
        self.bandwidth = bandwidth
        self.fpr = fpr

    def _learn(self, rows: Rows, groups: Ints) -> Floats:
        if len(rows) < 2:
            raise ValueError(f"`outputs` must hold two rows or more, got n_samples = {len(rows)}")
        order = np.argsort(groups, kind="stable")
        self._clean = rows[order].astype(np.float64)
        self._ends = np.cumsum(np.bincount(groups))
        self.bandwidth_ = self._chosen_bandwidth(rows - _means(rows, groups)[groups])
        return self._log_density(self._clean, np.arange(len(rows)))

    def _chosen_bandwidth(self, centred: Floats) -> float:
        if not isinstance(self.bandwidth, str):
            checks.positive("bandwidth", self.bandwidth)
            return float(self.bandwidth)
        checks.one_of("bandwidth", self.bandwidth, ("scott",))
        spread = math.sqrt(np.square(centred).mean())
        if not spread > 0:
            raise ValueError(
                "`outputs` must vary within a class for bandwidth='scott', or say bandwidth=..., "
                f"got n_samples = {len(centred)}"
            )
        each = len(centred) / len(self._ends)
        return float(spread * each ** (-1 / (centred.shape[1] + 4)))

    def _score(self, rows: Rows) -> Floats:
        return self._log_density(rows, np.full(len(rows), -1))

    def _log_density(self, rows: Rows, own: Ints) -> Floats:
        """The largest log density of a class at each of `rows` `(n, width)`, `(n,)`.

        Args:
            rows: where.
            own: the clean row that each is, which is left out; -1 for none, `(n,)`.
        """
        parts = zip(_parts(rows), _parts(own), strict=True)
        sums = np.concatenate([self._of_classes(*part) for part in parts])
        norm = rows.shape[1] * math.log(self.bandwidth_ * math.sqrt(2 * math.pi))
        return np.asarray(sums.max(1) - norm)

    def _of_classes(self, rows: Rows, own: Ints) -> Floats:
        """Logarithm of the mean of each class's kernels, `(n, classes)`, 1 at their centres."""
        exponents = cdist(rows, self._clean, "sqeuclidean") / (-2 * self.bandwidth_**2)
        left_out = np.flatnonzero(own >= 0)
        exponents[left_out, own[left_out]] = -np.inf
        found, first = [], 0
        for end in self._ends:
            count = end - first - ((own >= first) & (own < end))
            sums = logsumexp(exponents[:, first:end], axis=1)
            found.append(sums - np.log(np.maximum(count, 1)))
            first = end
        return np.stack(found, axis=1)


class LocalIntrinsicDimensionality(OutlierScore):
    """Minus the local intrinsic dimensionality among clean rows (Ma et al., 2018).

    How fast clean rows become more as one moves away from a row, by the maximum likelihood estimate
    from the distances to its k nearest ones (arXiv:1801.02613): near an adversarial input there
    seem to be more directions to go.

    Where we differ: neighbours are sought among all clean rows, not in a batch of a hundred; there
    is one layer, the rows that are passed, and the number is the score, where the article has a
    logistic regression over layers that has seen attacks. Clean rows that are there twice count
    once, and one that is equal to the row in question does not count: a distance of zero says
    nothing of dimensions. So clean rows themselves are judged by the others. The estimate is
    infinite where all neighbours are equally far; it ends at 1 / 2.2e-16.

    Args:
        k: neighbours, at least 2; fewer, with a warning, if there are not as many.
        fpr: share of the clean rows that `predict` takes for attacks, in [0, 1).

    Attributes:
        k_: neighbours that were taken.
        offset_: the score below which `predict` gives -1.

    Example:
        >>> import numpy as np
        >>> from advkit.detectors import LocalIntrinsicDimensionality
        >>> rng = np.random.default_rng(0)
        >>> line = rng.uniform(size=(500, 1)) * [1.0, 1.0, 1.0]
        >>> detector = LocalIntrinsicDimensionality().fit(line)
        >>> bool(detector.anomaly_score([[0.5, 0.5, 0.6]]) > detector.anomaly_score([[0.5, 0.5, 0.5]]))
        True
    """

    def __init__(self, k: int = 20, fpr: float = 0.05) -> None:
        self.k = k
        self.fpr = fpr

    def _learn(self, rows: Rows, groups: Ints) -> Floats:
        checks.integer("k", self.k, at_least=2)
        different = np.unique(rows, axis=0)
        if len(different) < 3:
            raise ValueError(
                "`outputs` must hold three different rows or more, "
                f"got {len(different)} of n_samples = {len(rows)}"
            )
        self.k_ = min(self.k, len(different) - 1)
        if self.k_ < self.k:
            checks.warn(f"k={self.k} neighbours, but there are {self.k_} other rows: taking those")
        self._tree = cKDTree(different)
        return self._score(rows)

    def _score(self, rows: Rows) -> Floats:
        distances = self._tree.query(rows, self.k_ + 1)[0]
        same = distances[:, :1] == 0
        nearest = np.where(same, distances[:, 1:], distances[:, :-1])
        nearest = np.maximum(nearest, np.finfo(np.float64).tiny)  # squares underflow
        decay = np.log(nearest[:, -1:] / nearest).mean(1)
        return np.asarray(-1 / np.maximum(decay, np.finfo(np.float64).eps))


def _means(rows: Rows, groups: Ints) -> Floats:
    """The mean of the rows of each class, `(classes, width)`."""
    sums = np.zeros((groups.max() + 1, rows.shape[1]))
    np.add.at(sums, groups, rows)
    return np.asarray(sums / np.bincount(groups)[:, None])


def _parts(rows: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """The rows in parts whose distances to all clean rows fit into memory."""
    return (rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK))
