"""Scores that know clean rows alone: closed forms, references, and what they refuse."""

import math
import warnings

import numpy as np
import pytest
from scipy.stats import entropy, gaussian_kde, multivariate_normal
from sklearn import neighbors
from sklearn.covariance import LedoitWolf
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from advkit.detectors.outlier_scores import (
    KernelDensity,
    LocalIntrinsicDimensionality,
    Mahalanobis,
    MaxSoftmax,
    OutputEntropy,
)

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


def clean(n=200, width=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width)) + 3 * np.eye(width)[0]


def three_classes(n=240, seed=0):
    """Rows of three unlike Gaussians, and their classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    centres = np.array([[0.0, 0, 0], [9, 0, 0], [0, 0, 9]])
    return centres[y] + rng.normal(size=(n, 3)) * [2, 1, 0.5], y


@pytest.mark.parametrize("detector", DETECTORS, ids=repr)
class TestContract:
    def test_suspicion_is_minus_the_score_and_the_offset_decides(self, detector):
        detector.fit(clean())
        rows = clean(seed=1, n=600)
        score = detector.score_samples(rows)
        assert score.dtype == np.float64
        assert np.isfinite(score).all()
        np.testing.assert_array_equal(detector.suspicion(rows), -score)
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
        for ask in (detector.score_samples, detector.suspicion, detector.predict):
            with pytest.raises(NotFittedError):
                type(detector)().suspicion(x)
            detector.fit(x)
            with pytest.raises(ValueError, match="X has 2 features, but .* is expecting 3"):
                ask(x[:1, :2])
            for value in (np.nan, np.inf):
                with pytest.raises(ValueError, match="have NaN or infinity in row 1"):
                    ask(np.array([[0.0, 0, 0], [0, value, 0]]))
        x[5, 0] = np.nan
        with pytest.raises(ValueError, match="have NaN or infinity in row 5"):
            detector.fit(x)
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            detector.fit(clean(), np.zeros(7))
        for fpr, words in ((1, "fpr must be below 1"), (1.5, "fpr must lie in"), (-1, "lie in")):
            with pytest.raises(ValueError, match=words):
                type(detector)(fpr=fpr).fit(clean())

    def test_rows_far_from_clean_ones_are_more_suspicious(self, detector):
        if isinstance(detector, LocalIntrinsicDimensionality):
            pytest.skip("counts directions, not distance")
        detector.fit(clean())
        middle, far = np.array([[3.0, 0, 0]]), np.array([[-3.0, -3, -3]])
        assert detector.suspicion(far) > detector.suspicion(middle)


P = np.array([[0.7, 0.2, 0.1], [0.4, 0.3, 0.3], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])


def test_confidence_in_closed_form():
    for kind, rows in (("scores", P), ("logits", np.log(np.maximum(P, 1e-300)) + 4)):
        largest = MaxSoftmax(kind).fit(rows)
        np.testing.assert_allclose(largest.score_samples(rows), [0.7, 0.4, 1, 0.5])
        spread = OutputEntropy(kind).fit(rows)
        np.testing.assert_allclose(spread.suspicion(rows), entropy(P, axis=1), atol=1e-12)


def test_the_offset_leaves_a_share_of_fpr_below():
    rows = np.stack([np.linspace(0.5, 0.95, 10), 1 - np.linspace(0.5, 0.95, 10)], axis=1)
    for fpr, flagged in ((0, 0), (0.05, 0), (0.1, 1), (0.29, 2), (0.3, 3), (0.99, 9)):
        detector = MaxSoftmax("scores", fpr=fpr).fit(rows)
        assert (detector.predict(rows) < 0).sum() == flagged


@pytest.mark.parametrize("kind", [MaxSoftmax, OutputEntropy])
def test_rows_are_what_they_are_said_to_be(kind):
    with pytest.raises(ValueError, match="outputs must be logits, got rows that are probabilities"):
        kind().fit(P)
    with pytest.raises(
        ValueError, match=r"outputs must be probabilities .* row 0, 1, 2, 3, 4 and 195"
    ):
        kind("scores").fit(clean() + 9)
    detector = kind("scores").fit(P)
    with pytest.raises(ValueError, match="not in row 1; say outputs='logits'"):
        detector.suspicion([[0.5, 0.5, 0], [0.9, 0.9, 0]])
    with pytest.raises(ValueError, match="outputs must be one of"):
        kind("labels").fit(P)


@pytest.mark.parametrize("shrinkage", [0, 0.3, "ledoit_wolf"])
def test_mahalanobis_distance_to_the_nearest_class(shrinkage):
    x, y = three_classes()
    means = np.stack([x[y == k].mean(0) for k in range(3)])
    centred = x - means[y]
    if shrinkage == "ledoit_wolf":
        covariance = LedoitWolf(assume_centered=True).fit(centred).covariance_
    else:
        plain = sum(np.outer(row, row) for row in centred) / len(x)
        covariance = (1 - shrinkage) * plain + shrinkage * np.trace(plain) / 3 * np.eye(3)
    inverse = np.linalg.inv(covariance)
    rows = np.random.default_rng(1).normal(size=(20, 3)) * 6
    expected = [max(-(r - m) @ inverse @ (r - m) for m in means) for r in rows]
    detector = Mahalanobis(shrinkage).fit(x, np.array(["a", "b", "c"])[y])
    np.testing.assert_allclose(detector.score_samples(rows), expected)
    np.testing.assert_allclose(detector.means_, means)


def test_mahalanobis_knows_a_gaussian():
    """Squared distances of a Gaussian in d dimensions have mean d; classes change that."""
    scale = np.array([5.0, 1, 0.1, 2])
    rng = np.random.default_rng(0)
    detector = Mahalanobis(shrinkage=0).fit(rng.normal(size=(20_000, 4)) * scale)
    new = rng.normal(size=(20_000, 4)) * scale
    assert detector.suspicion(new).mean() == pytest.approx(4, abs=0.1)
    density = multivariate_normal(np.zeros(4), np.diag(scale**2)).logpdf(new)
    assert np.corrcoef(detector.score_samples(new), density)[0, 1] > 0.999
    x, y = three_classes()
    between = np.array([[4.5, 0, 4.5]])
    classes, alone = Mahalanobis().fit(x, y), Mahalanobis().fit(x)
    assert classes.suspicion(between) > 5 * alone.suspicion(between)


def test_covariances_that_are_singular_need_shrinkage():
    p = np.random.default_rng(0).dirichlet(np.ones(5), 50)
    with pytest.raises(ValueError, match=r"covariance is singular: raise shrinkage=0 .*les = 50"):
        Mahalanobis(shrinkage=0).fit(p)
    few = np.random.default_rng(0).normal(size=(20, 100))
    for shrinkage in (0.01, "ledoit_wolf"):
        assert np.isfinite(Mahalanobis(shrinkage).fit(p).suspicion(p)).all()
        assert np.isfinite(Mahalanobis(shrinkage).fit(few).suspicion(few)).all()
    assert 0 < Mahalanobis().fit(few).shrinkage_ <= 1
    with pytest.raises(ValueError, match="covariance is singular"):
        Mahalanobis().fit(np.ones((9, 3)))
    with pytest.raises(ValueError, match="shrinkage must lie in"):
        Mahalanobis(shrinkage=2).fit(p)
    with pytest.raises(ValueError, match="shrinkage must be one of 'ledoit_wolf', got 'oas'"):
        Mahalanobis(shrinkage="oas").fit(p)


def test_the_density_is_that_of_other_libraries():
    x, rows = clean(n=300), clean(n=600, seed=1)
    detector = KernelDensity(bandwidth=0.4).fit(x)
    expected = neighbors.KernelDensity(bandwidth=0.4).fit(x).score_samples(rows)
    np.testing.assert_allclose(detector.score_samples(rows), expected)
    white = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    reference = gaussian_kde(white.T, bw_method=0.4).logpdf(rows.T)
    found = KernelDensity(bandwidth=0.4).fit(white).score_samples(rows)
    np.testing.assert_allclose(found, reference)


def test_the_density_of_the_class_where_it_is_largest():
    x, y = three_classes()
    rows = np.random.default_rng(1).normal(size=(20, 3)) * 6
    each = [neighbors.KernelDensity(bandwidth=0.7).fit(x[y == k]) for k in range(3)]
    expected = np.max([density.score_samples(rows) for density in each], axis=0)
    found = KernelDensity(bandwidth=0.7).fit(x, y).score_samples(rows)
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("classes", [False, True])
def test_the_offset_of_the_density_leaves_each_row_out(classes):
    x, y = three_classes(n=40)
    y = y if classes else 0 * y
    own = []
    for i in range(len(x)):
        others = np.arange(len(x)) != i
        left = KernelDensity(bandwidth=0.7).fit(x[others], y[others])
        own.append(left.score_samples(x[i : i + 1])[0])
    detector = KernelDensity(bandwidth=0.7, fpr=0.25).fit(x, y)
    assert detector.offset_ == pytest.approx(sorted(own)[10])


def test_a_class_of_a_single_row_is_judged_by_the_others():
    x = np.array([[0.0], [1.0], [5.0]])
    detector = KernelDensity(bandwidth=1.0, fpr=0).fit(x, [0, 0, 1])
    expected = math.log((math.exp(-12.5) + math.exp(-8)) / 2) - math.log(2 * math.pi) / 2
    assert detector.offset_ == pytest.approx(expected)


def test_the_bandwidth():
    x, y = three_classes()
    centred = x - np.stack([x[y == k].mean(0) for k in range(3)])[y]
    expected = np.sqrt(centred.var(0).mean()) * 80 ** (-1 / 7)
    assert KernelDensity().fit(x, y).bandwidth_ == pytest.approx(expected)
    with pytest.raises(ValueError, match="bandwidth must be positive"):
        KernelDensity(bandwidth=0.0).fit(x)
    with pytest.raises(ValueError, match="bandwidth must be one of 'scott'"):
        KernelDensity(bandwidth="silverman").fit(x)
    with pytest.raises(ValueError, match="outputs must vary within a class for bandwidth='scott'"):
        KernelDensity().fit(np.ones((5, 2)))
    assert KernelDensity(bandwidth=1.0).fit(np.ones((5, 2))).predict([[1, 1]]) == 1
    with pytest.raises(ValueError, match="two rows or more, got n_samples = 1"):
        KernelDensity(bandwidth=1.0).fit(np.ones((1, 2)))


@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_dimensionality_of_uniform_rows_is_their_number_of_dimensions(d):
    rng = np.random.default_rng(0)
    frame = np.linalg.qr(rng.normal(size=(6, 6)))[0][:d]
    detector = LocalIntrinsicDimensionality(k=60).fit(rng.uniform(-1, 1, (8_000, d)) @ frame)
    found = detector.suspicion(rng.uniform(-0.3, 0.3, (200, d)) @ frame)
    assert found.mean() == pytest.approx(d, rel=0.08)


def test_the_dimensionality_in_closed_form():
    x = np.array([[1.0], [2.0], [4.0], [100.0]])
    detector = LocalIntrinsicDimensionality(k=3).fit(x)
    assert detector.suspicion([[0.0]]) == pytest.approx(3 / math.log(8))
    # A row that is there is judged by the others: distances 1, 2 and 98.
    assert detector.suspicion([[2.0]]) == pytest.approx(3 / math.log(98**2 / 2))


def test_distances_of_zero_and_equal_distances():
    x = np.array([[1.0], [2.0], [4.0], [100.0]])
    once = LocalIntrinsicDimensionality(k=3).fit(x)
    twice = LocalIntrinsicDimensionality(k=3).fit(np.concatenate([x, x, x[:1]]))
    rows = np.array([[0.0], [1.0], [2.5]])
    np.testing.assert_array_equal(once.suspicion(rows), twice.suspicion(rows))
    ring = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1], [3, 3]])
    flat = LocalIntrinsicDimensionality(k=4).fit(ring).suspicion([[0.0, 0]])
    assert flat == 1 / np.finfo(float).eps
    zeros = np.array([[0.0], [1e-200], [-0.0], [1.0], [2.0]])
    assert np.isfinite(LocalIntrinsicDimensionality(k=2).fit(zeros).suspicion(zeros)).all()


def test_fewer_rows_than_neighbours():
    x = clean(n=8)
    with pytest.warns(UserWarning, match="k=20 neighbours, but there are 7 other rows"):
        few = LocalIntrinsicDimensionality().fit(x)
    assert few.k_ == 7
    expected = LocalIntrinsicDimensionality(k=7).fit(x)
    np.testing.assert_array_equal(few.suspicion(x + 1), expected.suspicion(x + 1))
    with pytest.raises(ValueError, match="three different rows or more, got 2 of n_samples = 6"):
        LocalIntrinsicDimensionality().fit(np.repeat(x[:2], 3, axis=0))
    with pytest.raises(ValueError, match="k must be at least 2, got 1"):
        LocalIntrinsicDimensionality(k=1).fit(x)
