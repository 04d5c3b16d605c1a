"""Detectors that score the confidence of the model in each row of outputs."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils.validation import check_is_fitted
from typing_extensions import Self

from advkit.core import checks
from advkit.core.content import check_keys, check_shape
from advkit.detectors.features import (
    OUTPUTS,
    Floats,
    Outputs,
    Rows,
    check_kind,
    entropy,
    probabilities,
)
from advkit.detectors.outlier_score import Ints, OutlierScore


class _Confidence(OutlierScore):
    """Base class of the scores of single rows; only the offset depends on the clean rows."""

    n_features_in_: int

    def __init__(self, outputs: Outputs = "logits", fpr: float = 0.05) -> None:
        self.outputs = outputs
        self.fpr = fpr

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the settings and the fitted state as plain arrays.

        Raises:
            NotFittedError: the detector is not fitted; a subclass of ValueError.
        """
        check_is_fitted(self)
        numbers = [self.fpr, self.offset_, self.n_features_in_]
        return {"outputs": np.asarray(self.outputs), "numbers": np.array(numbers, dtype=float)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, npt.NDArray[Any]]) -> Self:
        """Return the detector whose `arrays` these are.

        Raises:
            TypeError: an array has the wrong type.
            ValueError: the arrays are not those of such a detector.
        """
        check_keys("arrays", arrays, ("outputs", "numbers"))
        outputs: Any = str(arrays["outputs"])
        checks.one_of("outputs", outputs, OUTPUTS)
        numbers = torch.from_numpy(arrays["numbers"])
        check_shape("numbers", numbers, torch.float64, (3,), finite=True)
        fpr, offset, width = numbers.tolist()
        checks.fraction("fpr", fpr, "[0, 1)")
        if width < 1 or not width.is_integer():
            raise ValueError(f"`width` must be a positive integer, got {width:g}.")
        detector = cls(outputs, fpr)
        detector.offset_, detector.n_features_in_ = offset, int(width)
        return detector

    def _fit_rows(self, rows: Rows, groups: Ints) -> Floats:
        checks.one_of("outputs", self.outputs, OUTPUTS)
        check_kind(rows, self.outputs)
        return self._score(rows)

    def _score(self, rows: Rows) -> Floats:
        return self._confidence(probabilities(rows, self.outputs))

    @abstractmethod
    def _confidence(self, p: Floats) -> Floats:
        """Return the confidence `(n,)` of distributions `(n, width)`."""


class MaxSoftmax(_Confidence):
    """Largest probability (Hendrycks and Gimpel, 2017, arXiv:1610.02136).

    The article detects out-of-distribution and misclassified inputs with it, and makes no claim
    about attacks. Adversarial examples of high confidence score as more normal than clean inputs.

    Args:
        outputs: kind of the rows: `"logits"`, of which the softmax is taken, or `"scores"`, which
            are taken as probabilities.
        fpr: false-positive rate of `predict`: the share of the clean rows for which it returns -1,
            in [0, 1).

    Attributes:
        offset_: the score below which `predict` returns -1.

    Example:
        >>> import numpy as np
        >>> from advkit.detectors import MaxSoftmax
        >>> clean = np.random.default_rng(0).normal(size=(100, 3)) + [6, 0, 0]
        >>> MaxSoftmax().fit(clean).predict([[7.0, 0.0, 0.0], [0.4, 0.3, 0.3]])
        array([ 1, -1])
    """

    def _confidence(self, p: Floats) -> Floats:
        return np.asarray(p.max(1))


class OutputEntropy(_Confidence):
    """Negative entropy of the probabilities, in nats.

    It depends on the whole row, whereas `MaxSoftmax` depends on one entry. In all else it is the
    method of Hendrycks and Gimpel (2017, arXiv:1610.02136).

    Args:
        outputs: kind of the rows: `"logits"`, of which the softmax is taken, or `"scores"`, which
            are taken as probabilities.
        fpr: false-positive rate of `predict`: the share of the clean rows for which it returns -1,
            in [0, 1).

    Attributes:
        offset_: the score below which `predict` returns -1.

    Example:
        >>> import numpy as np
        >>> from advkit.detectors import OutputEntropy
        >>> detector = OutputEntropy("scores").fit(np.eye(3))
        >>> scores = detector.anomaly_score([[0.5, 0.25, 0.25], [0.9, 0.1, 0]])
        >>> bool(scores[0] > scores[1])
        True
    """

    def _confidence(self, p: Floats) -> Floats:
        return -entropy(p)
