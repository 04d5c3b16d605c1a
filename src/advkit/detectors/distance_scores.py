"""Detectors that score rows by their distances to clean rows."""

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

_CHUNK = 256  # rows whose distances to all clean rows are in memory together; bounds the memory


class Mahalanobis(OutlierScore):
    """Negative squared Mahalanobis distance to the nearest class (Lee et al., 2018).

    Lee, Lee, Lee and Shin (arXiv:1807.03888) fit a Gaussian to each class, with one covariance for
    all classes. They score a row by the nearest class, whichever class the model predicts. Without
    classes there is one Gaussian.

    Deviations from the paper:
        - Only one layer is used: the rows that are passed.
        - No noise is added to inputs (their "calibration"), which would need the model.
        - The covariance is shrunk. That of probabilities, whose sum is one, is singular, and so is
          that of a thousand outputs of a hundred images.

    Args:
        shrinkage: the fraction of the covariance that is replaced by the identity times its mean
            variance, in [0, 1]; `"ledoit_wolf"` for the fraction that Ledoit and Wolf (2004,
            Journal of Multivariate Analysis 88) estimate; 0 for the article's covariance.
        fpr: false-positive rate of `predict`: the share of the clean rows for which it returns -1,
            in [0, 1). It holds for the rows of the fit; the rate on other rows is somewhat greater.

    Attributes:
        means_: mean of each class `(classes, width)`.
        shrinkage_: the fraction that was used.
        offset_: the score below which `predict` returns -1.

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

    def _fit_rows(self, rows: Rows, groups: Ints) -> Floats:
        self.means_ = _means(rows, groups)
        covariance, self.shrinkage_ = self._covariance(rows - self.means_[groups])
        variances, axes = np.linalg.eigh(covariance)
        if not variances[0] > variances[-1] * len(variances) * np.finfo(np.float64).eps:
            raise ValueError(
                "`outputs` must vary in every direction, got a singular covariance of n_samples = "
                f"{len(rows)}. Increase shrinkage={self.shrinkage!r}, or fit more rows."
            )
        self._whitening = axes / np.sqrt(variances)
        return self._score(rows)

    def _covariance(self, centered: Floats) -> tuple[Floats, float]:
        """Return the shrunk covariance `(width, width)` of `centered` rows, and the shrinkage."""
        if isinstance(self.shrinkage, str):
            checks.one_of("shrinkage", self.shrinkage, ("ledoit_wolf",))
            covariance, shrinkage = ledoit_wolf(centered)
            return covariance, float(shrinkage)
        checks.fraction("shrinkage", self.shrinkage)
        sample = centered.T @ centered / len(centered)
        identity = np.eye(len(sample)) * np.trace(sample) / len(sample)
        return (1 - self.shrinkage) * sample + self.shrinkage * identity, self.shrinkage

    def _score(self, rows: Rows) -> Floats:
        centers = self.means_ @ self._whitening
        scores = [
            -cdist(part @ self._whitening, centers, "sqeuclidean").min(1) for part in _parts(rows)
        ]
        return np.concatenate(scores)


class KernelDensity(OutlierScore):
    """Logarithm of a Gaussian kernel density of clean rows (Feinman et al., 2017).

    Feinman, Curtin, Shintre and Gardner (arXiv:1703.00410) use the density of the class that the
    model predicts, in its last hidden layer. Without classes there is one density.

    Deviations from the paper:
        - The score is the largest density over all classes, since the rows do not tell which class
          the model predicts. It is never below the paper's density.
        - The density is used alone; the paper combines it with the uncertainty of dropout.
        - The default bandwidth is Scott's rule; the paper searches for a bandwidth.

    Args:
        bandwidth: standard deviation of the kernel, in units of the rows; positive. `"scott"` for
            n ** (-1 / (width + 4)), with n the mean number of rows of a class (Scott, 1992), times
            the root of the mean variance within classes.
        fpr: false-positive rate of `predict`, in [0, 1): the share of the clean rows for which it
            would return -1 if it had not been fitted on them. The offset is computed from
            leave-one-out densities.

    Attributes:
        bandwidth_: the bandwidth that was used.
        offset_: the score below which `predict` returns -1.

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

    def _fit_rows(self, rows: Rows, groups: Ints) -> Floats:
        if len(rows) < 2:
            raise ValueError(f"`outputs` must hold at least 2 rows, got n_samples = {len(rows)}.")
        order = np.argsort(groups, kind="stable")
        self._clean = rows[order].astype(np.float64)
        self._ends = np.cumsum(np.bincount(groups))
        self.bandwidth_ = self._chosen_bandwidth(rows - _means(rows, groups)[groups])
        return self._log_density(self._clean, np.arange(len(rows)))

    def _chosen_bandwidth(self, centered: Floats) -> float:
        if not isinstance(self.bandwidth, str):
            checks.positive("bandwidth", self.bandwidth)
            return float(self.bandwidth)
        checks.one_of("bandwidth", self.bandwidth, ("scott",))
        spread = math.sqrt(np.square(centered).mean())
        if not spread > 0:
            raise ValueError(
                "`outputs` must vary within a class for bandwidth='scott', got n_samples = "
                f"{len(centered)} without variance. Pass a number as bandwidth=..."
            )
        rows_per_class = len(centered) / len(self._ends)
        return float(spread * rows_per_class ** (-1 / (centered.shape[1] + 4)))

    def _score(self, rows: Rows) -> Floats:
        return self._log_density(rows, np.full(len(rows), -1))

    def _log_density(self, rows: Rows, own: Ints) -> Floats:
        """Return the largest log density over classes at each of `rows` `(n, width)`, `(n,)`.

        Args:
            rows: points at which to evaluate the densities.
            own: `(n,)`, index of the clean row that each of `rows` is, which is left out of the
                densities at it; -1 for none.
        """
        parts = zip(_parts(rows), _parts(own), strict=True)
        sums = np.concatenate([self._log_mean_kernels(*part) for part in parts])
        norm = rows.shape[1] * math.log(self.bandwidth_ * math.sqrt(2 * math.pi))
        return np.asarray(sums.max(1) - norm)

    def _log_mean_kernels(self, rows: Rows, own: Ints) -> Floats:
        """Return the log mean of each class's kernels `(n, classes)`; a kernel is 1 at its row."""
        exponents = cdist(rows, self._clean, "sqeuclidean") / (-2 * self.bandwidth_**2)
        left_out = np.flatnonzero(own >= 0)
        exponents[left_out, own[left_out]] = -np.inf
        means, first = [], 0
        for end in self._ends:
            count = end - first - ((own >= first) & (own < end))
            sums = logsumexp(exponents[:, first:end], axis=1)
            means.append(sums - np.log(np.maximum(count, 1)))
            first = end
        return np.stack(means, axis=1)


class LocalIntrinsicDimensionality(OutlierScore):
    """Negative local intrinsic dimensionality among clean rows (Ma et al., 2018).

    The dimensionality measures how fast the number of clean rows grows with the distance from a
    row. It is the maximum likelihood estimate from the distances to the k nearest clean rows
    (arXiv:1801.02613), and tends to be greater at adversarial inputs. Where all neighbors are
    equally far the estimate is infinite; it is limited to 1 / 2.2e-16.

    Deviations from the paper:
        - Neighbors are taken from all clean rows, not from a batch of a hundred.
        - Only one layer is used: the rows that are passed.
        - The estimate itself is the score; the paper fits a logistic regression over layers on
          adversarial examples.
        - Repeated clean rows count once, and clean rows equal to the scored row do not count, since
          a distance of zero carries no information. Clean rows are therefore scored by the others.

    Args:
        k: number of neighbors, at least 2; reduced with a warning if there are fewer clean rows.
        fpr: false-positive rate of `predict`: the share of the clean rows for which it returns -1,
            in [0, 1).

    Attributes:
        k_: number of neighbors that were used.
        offset_: the score below which `predict` returns -1.

    Example:
        >>> import numpy as np
        >>> from advkit.detectors import LocalIntrinsicDimensionality
        >>> rng = np.random.default_rng(0)
        >>> line = rng.uniform(size=(500, 1)) * [1.0, 1.0, 1.0]
        >>> detector = LocalIntrinsicDimensionality().fit(line)
        >>> scores = detector.anomaly_score([[0.5, 0.5, 0.6], [0.5, 0.5, 0.5]])
        >>> bool(scores[0] > scores[1])
        True
    """

    def __init__(self, k: int = 20, fpr: float = 0.05) -> None:
        self.k = k
        self.fpr = fpr

    def _fit_rows(self, rows: Rows, groups: Ints) -> Floats:
        checks.integer("k", self.k, at_least=2)
        different = np.unique(rows, axis=0)
        if len(different) < 3:
            raise ValueError(
                "`outputs` must hold at least 3 different rows, "
                f"got {len(different)} of n_samples = {len(rows)}."
            )
        self.k_ = min(self.k, len(different) - 1)
        if self.k_ < self.k:
            checks.warn(
                f"`k` must be at most {self.k_}, the number of other rows, got {self.k}. "
                f"{self.k_} neighbors are used."
            )
        self._tree = cKDTree(different)
        return self._score(rows)

    def _score(self, rows: Rows) -> Floats:
        distances = self._tree.query(rows, self.k_ + 1)[0]
        same = distances[:, :1] == 0
        nearest = np.where(same, distances[:, 1:], distances[:, :-1])
        nearest = np.maximum(nearest, np.finfo(np.float64).tiny)  # squares may underflow to 0
        decay = np.log(nearest[:, -1:] / nearest).mean(1)
        return np.asarray(-1 / np.maximum(decay, np.finfo(np.float64).eps))


def _means(rows: Rows, groups: Ints) -> Floats:
    """Return the mean of the rows of each class, `(classes, width)`."""
    sums = np.zeros((groups.max() + 1, rows.shape[1]))
    np.add.at(sums, groups, rows)
    return np.asarray(sums / np.bincount(groups)[:, None])


def _parts(rows: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield the rows in parts whose distances to all clean rows fit into memory."""
    return (rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK))
