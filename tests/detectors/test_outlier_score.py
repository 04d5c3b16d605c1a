"""What all detectors that are fitted on clean rows alone have in common."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from advkit.detectors import (
    KernelDensity,
    LocalIntrinsicDimensionality,
    Mahalanobis,
    MaxSoftmax,
    OutputEntropy,
)
from tests.detectors.clean_rows import clean

DETECTORS = [
    MaxSoftmax(),
    OutputEntropy(),
    Mahalanobis(),
    Mahalanobis(shrinkage=0.1),
    KernelDensity(),
    KernelDensity(bandwidth=0.5),
    LocalIntrinsicDimensionality(k=5),
]


@parametrize_with_checks(DETECTORS)
def test_scikit_learns_own_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fewer neighbours than were asked for, say
        check(estimator)


@pytest.mark.parametrize("detector", DETECTORS, ids=repr)
class TestContract:
    def test_suspicion_is_minus_the_score_and_the_offset_decides(self, detector):
        detector.fit(clean())
        rows = clean(seed=1, n=600)
        score = detector.score_samples(rows)
        assert score.dtype == np.float64
        assert np.isfinite(score).all()
        np.testing.assert_array_equal(detector.anomaly_score(rows), -score)
        np.testing.assert_array_equal(
            detector.predict(rows), np.where(score >= detector.offset_, 1, -1)
        )
        one = np.concatenate([detector.score_samples(rows[i : i + 1]) for i in range(600)])
        np.testing.assert_allclose(one, score, rtol=1e-9)

    @pytest.mark.parametrize("fpr", [0.0, 0.2])
    def test_about_a_share_of_fpr_of_clean_rows_is_flagged(self, detector, fpr):
        detector = type(detector)(**detector.get_params() | {"fpr": fpr}).fit(clean(n=1000))
        new = (detector.predict(clean(n=1000, seed=1)) < 0).mean()
        assert new == pytest.approx(fpr, abs=0.05)

    def test_bad_input(self, detector):
        x = clean()
        for ask in (detector.score_samples, detector.anomaly_score, detector.predict):
            with pytest.raises(NotFittedError):
                type(detector)().anomaly_score(x)
            detector.fit(x)
            with pytest.raises(ValueError, match="X has 2 features, but .* is expecting 3"):
                ask(x[:1, :2])
            for value in (np.nan, np.inf):
                with pytest.raises(ValueError, match="got NaN or infinity .row 1"):
                    ask(np.array([[0.0, 0, 0], [0, value, 0]]))
        x[5, 0] = np.nan
        with pytest.raises(ValueError, match="got NaN or infinity .row 5"):
            detector.fit(x)
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            detector.fit(clean(), np.zeros(7))
        for fpr, words in (
            (1, "`fpr` must lie in .0, 1., got 1"),
            (1.5, "`fpr` must lie in"),
            (-1, "lie in"),
        ):
            with pytest.raises(ValueError, match=words):
                type(detector)(fpr=fpr).fit(clean())

    def test_rows_far_from_clean_ones_are_more_suspicious(self, detector):
        if isinstance(detector, LocalIntrinsicDimensionality):
            pytest.skip("counts directions, not distance")
        detector.fit(clean())
        middle, far = np.array([[3.0, 0, 0]]), np.array([[-3.0, -3, -3]])
        assert detector.anomaly_score(far) > detector.anomaly_score(middle)


def test_the_offset_leaves_a_share_of_fpr_below():
    rows = np.stack([np.linspace(0.5, 0.95, 10), 1 - np.linspace(0.5, 0.95, 10)], axis=1)
    for fpr, flagged in ((0, 0), (0.05, 0), (0.1, 1), (0.29, 2), (0.3, 3), (0.99, 9)):
        detector = MaxSoftmax("scores", fpr=fpr).fit(rows)
        assert (detector.predict(rows) < 0).sum() == flagged
