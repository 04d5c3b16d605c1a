"""Detectors that score the confidence of the model in each row of outputs."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from advkit.core import checks
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

    def __init__(self, outputs: Outputs = "logits", fpr: float = 0.05) -> None:
        self.outputs = outputs
        self.fpr = fpr

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
