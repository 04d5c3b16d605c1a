"""Scores of a row by itself: how sure the model is of its answer."""

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
    """Base of the scores that look at the row alone; from clean rows they learn the offset."""

    def __init__(self, outputs: Outputs = "logits", fpr: float = 0.05) -> None:
        self.outputs = outputs
        self.fpr = fpr

    def _learn(self, rows: Rows, groups: Ints) -> Floats:
        checks.one_of("outputs", self.outputs, OUTPUTS)
        check_kind(rows, self.outputs)
        return self._score(rows)

    def _score(self, rows: Rows) -> Floats:
        return self._certainty(probabilities(rows, self.outputs))

    @abstractmethod
    def _certainty(self, p: Floats) -> Floats:
        """How sure distributions `(n, width)` are, `(n,)`."""


class MaxSoftmax(_Confidence):
    """The largest probability (Hendrycks and Gimpel, 2017, arXiv:1610.02136).

    The article finds unknown and misclassified inputs with it, and does not promise attacks: a
    confident attack looks cleaner than clean.

    Args:
        outputs: what the rows are: `"logits"`, of which the softmax is taken, or `"scores"`,
            probabilities as they are.
        fpr: share of the clean rows that `predict` takes for attacks, in [0, 1).

    Attributes:
        offset_: the score below which `predict` gives -1.

    Example:
        >>> import numpy as np
        >>> from advkit.detectors import MaxSoftmax
        >>> clean = np.random.default_rng(0).normal(size=(100, 3)) + [6, 0, 0]
        >>> MaxSoftmax().fit(clean).predict([[7.0, 0.0, 0.0], [0.4, 0.3, 0.3]])
        array([ 1, -1])
    """

    def _certainty(self, p: Floats) -> Floats:
        return np.asarray(p.max(1))


class OutputEntropy(_Confidence):
    """Minus the entropy of the probabilities, in nats.

    It looks at the whole row where `MaxSoftmax` looks at one entry. Of Hendrycks and Gimpel's
    method (2017, arXiv:1610.02136) only this number is another.

    Args:
        outputs: what the rows are: `"logits"`, of which the softmax is taken, or `"scores"`,
            probabilities as they are.
        fpr: share of the clean rows that `predict` takes for attacks, in [0, 1).

    Attributes:
        offset_: the score below which `predict` gives -1.

    Example:
        >>> import numpy as np
        >>> from advkit.detectors import OutputEntropy
        >>> detector = OutputEntropy("scores").fit(np.eye(3))
        >>> bool(detector.anomaly_score([[0.5, 0.25, 0.25]]) > detector.anomaly_score([[0.9, 0.1, 0]]))
        True
    """

    def _certainty(self, p: Floats) -> Floats:
        return -entropy(p)
