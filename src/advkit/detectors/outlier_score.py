"""Base class of the detectors that are fitted on clean rows alone.

They are scikit-learn outlier detectors: a greater `score_samples` is more normal, and `predict`
returns 1 or -1. They need no adversarial examples to be fitted.
"""
# ruff: noqa: N803 - scikit-learn's methods call their rows X

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, OutlierMixin
from typing_extensions import Self

from advkit.core import checks
from advkit.detectors.features import Floats, Rows, rows_to_fit, rows_to_score

Ints = npt.NDArray[np.intp]


class OutlierScore(OutlierMixin, BaseEstimator):  # type: ignore[misc]  # no types there
    """Base class of the detectors that are fitted on clean rows alone.

    A subclass has a constructor with `fpr`, and the methods `_fit_rows` and `_score`.
    """

    fpr: float
    offset_: float

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike | None = None) -> Self:
        """Fit the detector on clean rows.

        Args:
            X: clean rows `(n, width)`, finite.
            y: their classes `(n,)`, for detectors that model each class; others ignore them.

        Returns:
            This detector.

        Raises:
            ValueError: rows or classes have the wrong shape, rows are not finite or too few, or an
                option is out of its range.
            TypeError: an option has the wrong type.
        """
        checks.fraction("fpr", self.fpr, "[0, 1)")
        rows, labels = rows_to_fit(self, X, "no_validation" if y is None else y)
        if labels is None:
            labels = np.zeros(len(rows), dtype=np.intp)
        scores = self._fit_rows(rows, np.unique(labels, return_inverse=True)[1])
        self.offset_ = float(np.sort(scores)[math.floor(self.fpr * len(scores))])
        return self

    def score_samples(self, X: npt.ArrayLike) -> Floats:
        """Return a score `(n,)` for each of `X` `(n, width)`; greater is more normal.

        Raises:
            NotFittedError: the detector is not fitted; a subclass of ValueError.
            ValueError: rows have another width than in `fit`, or are not finite.
        """
        return self._score(rows_to_score(self, X))

    def decision_function(self, X: npt.ArrayLike) -> Floats:
        """Return `score_samples` minus `offset_`, `(n,)`: below zero where `predict` returns -1."""
        return np.asarray(self.score_samples(X) - self.offset_)

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return 1 for rows that are predicted to be clean and -1 for the others, `(n,)`."""
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def anomaly_score(self, outputs: npt.ArrayLike) -> Floats:
        """Return the anomaly scores `(n,)` of rows `(n, width)`; greater is more anomalous.

        They are the negative of `score_samples`.

        Raises:
            NotFittedError: the detector is not fitted; a subclass of ValueError.
            ValueError: rows have another width than in `fit`, or are not finite.
        """
        return -self.score_samples(outputs)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "offset_")

    @abstractmethod
    def _fit_rows(self, rows: Rows, groups: Ints) -> Floats:
        """Fit to clean `rows` `(n, width)` of the classes `groups` `(n,)`, counted from 0.

        Returns:
            The score `(n,)` of each row, computed as for a row outside the fit where the detector
            can leave the row itself out.
        """

    @abstractmethod
    def _score(self, rows: Rows) -> Floats:
        """Return a score `(n,)` for each of `rows` `(n, width)`; greater is more normal."""
