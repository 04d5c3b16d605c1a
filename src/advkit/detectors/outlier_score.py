"""The base of detectors that are fitted on clean rows alone.

They are scikit-learn outlier detectors: greater `score_samples` are more normal, `predict` gives +1
or -1. They are not shown an attack before they are used to detect one.
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
from advkit.detectors.features import Floats, Rows, rows_to_judge, rows_to_learn

Ints = npt.NDArray[np.intp]


class OutlierScore(OutlierMixin, BaseEstimator):  # type: ignore[misc]  # no types there
    """Base of the detectors that are fitted on clean rows alone.

    A subclass has a constructor with `fpr`, a `_learn` and a `_score`.
    """

    fpr: float
    offset_: float

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike | None = None) -> Self:
        """Learn what clean rows look like.

        Args:
            X: clean rows `(n, width)`, finite.
            y: their classes `(n,)` for detectors that tell classes apart; others ignore it.

        Returns:
            This detector.

        Raises:
            ValueError: rows or classes of the wrong shape, rows that are not finite or too few, or
                an option out of range.
            TypeError: an option of the wrong type.
        """
        checks.fraction("fpr", self.fpr)
        if self.fpr == 1:
            raise ValueError("`fpr` must be below 1, got 1")
        rows, labels = rows_to_learn(self, X, "no_validation" if y is None else y)
        if labels is None:
            labels = np.zeros(len(rows), dtype=np.intp)
        own = self._learn(rows, np.unique(labels, return_inverse=True)[1])
        self.offset_ = float(np.sort(own)[math.floor(self.fpr * len(own))])
        return self

    def score_samples(self, X: npt.ArrayLike) -> Floats:
        """How normal each of `X` `(n, width)` is, `(n,)`; greater is more normal.

        Raises:
            NotFittedError: before `fit`; a ValueError.
            ValueError: rows of another width, or that are not finite.
        """
        return self._score(rows_to_judge(self, X))

    def decision_function(self, X: npt.ArrayLike) -> Floats:
        """`score_samples` minus `offset_`, `(n,)`: below zero where `predict` gives -1."""
        return np.asarray(self.score_samples(X) - self.offset_)

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """1 for rows that look clean, -1 for the others, `(n,)`."""
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def anomaly_score(self, outputs: npt.ArrayLike) -> Floats:
        """Minus `score_samples`, `(n,)`: greater is more suspicious; raises as it does."""
        return -self.score_samples(outputs)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "offset_")

    @abstractmethod
    def _learn(self, rows: Rows, groups: Ints) -> Floats:
        """Learn from clean `rows` `(n, width)` of the classes `groups` `(n,)`, 0 and up.

        Returns:
            The score of each as that of a row that was not learned from, as far as that is to be
            had, `(n,)`.
        """

    @abstractmethod
    def _score(self, rows: Rows) -> Floats:
        """How normal each of `rows` `(n, width)` is, `(n,)`."""
