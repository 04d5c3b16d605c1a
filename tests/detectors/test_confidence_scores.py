"""Scores of a row by itself: closed forms, and what they refuse."""

import numpy as np
import pytest
from scipy.stats import entropy

from advkit.detectors.confidence_scores import MaxSoftmax, OutputEntropy
from tests.detectors.clean_rows import clean

P = np.array([[0.7, 0.2, 0.1], [0.4, 0.3, 0.3], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])


def test_confidence_in_closed_form():
    for kind, rows in (("scores", P), ("logits", np.log(np.maximum(P, 1e-300)) + 4)):
        largest = MaxSoftmax(kind).fit(rows)
        np.testing.assert_allclose(largest.score_samples(rows), [0.7, 0.4, 1, 0.5])
        spread = OutputEntropy(kind).fit(rows)
        np.testing.assert_allclose(spread.anomaly_score(rows), entropy(P, axis=1), atol=1e-12)


@pytest.mark.parametrize("kind", [MaxSoftmax, OutputEntropy])
def test_rows_are_what_they_are_said_to_be(kind):
    with pytest.raises(
        ValueError, match="`outputs` must be logits, got rows that are probabilities"
    ):
        kind().fit(P)
    with pytest.raises(
        ValueError, match=r"`outputs` must be probabilities .*rows 0, 1, 2, 3, 4 and 195"
    ):
        kind("scores").fit(clean() + 9)
    detector = kind("scores").fit(P)
    with pytest.raises(ValueError, match="row 1.*Pass outputs='logits'"):
        detector.anomaly_score([[0.5, 0.5, 0], [0.9, 0.9, 0]])
    with pytest.raises(ValueError, match="`outputs` must be one of"):
        kind("labels").fit(P)
