"""Scores of a row by clean rows: closed forms, references, and what they refuse."""

import math

import numpy as np
import pytest
from scipy.stats import gaussian_kde, multivariate_normal
from sklearn import neighbors
from sklearn.covariance import LedoitWolf

from advkit.detectors.distance_scores import (
    KernelDensity,
    LocalIntrinsicDimensionality,
    Mahalanobis,
)
from tests.detectors.clean_rows import clean, three_classes


@pytest.mark.parametrize("shrinkage", [0, 0.3, "ledoit_wolf"])
def test_mahalanobis_distance_to_the_nearest_class(shrinkage):
    x, y = three_classes()
    means = np.stack([x[y == k].mean(0) for k in range(3)])
    centered = x - means[y]
    if shrinkage == "ledoit_wolf":
        covariance = LedoitWolf(assume_centered=True).fit(centered).covariance_
    else:
        plain = sum(np.outer(row, row) for row in centered) / len(x)
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
    assert detector.anomaly_score(new).mean() == pytest.approx(4, abs=0.1)
    density = multivariate_normal(np.zeros(4), np.diag(scale**2)).logpdf(new)
    assert np.corrcoef(detector.score_samples(new), density)[0, 1] > 0.999
    x, y = three_classes()
    between = np.array([[4.5, 0, 4.5]])
    classes, alone = Mahalanobis().fit(x, y), Mahalanobis().fit(x)
    assert classes.anomaly_score(between) > 5 * alone.anomaly_score(between)


def test_covariances_that_are_singular_need_shrinkage():
    p = np.random.default_rng(0).dirichlet(np.ones(5), 50)
    with pytest.raises(
        ValueError, match=r"singular covariance of n_samples = 50. Increase shrinkage=0"
    ):
        Mahalanobis(shrinkage=0).fit(p)
    few = np.random.default_rng(0).normal(size=(20, 100))
    for shrinkage in (0.01, "ledoit_wolf"):
        assert np.isfinite(Mahalanobis(shrinkage).fit(p).anomaly_score(p)).all()
        assert np.isfinite(Mahalanobis(shrinkage).fit(few).anomaly_score(few)).all()
    assert 0 < Mahalanobis().fit(few).shrinkage_ <= 1
    with pytest.raises(ValueError, match="singular covariance"):
        Mahalanobis().fit(np.ones((9, 3)))
    with pytest.raises(ValueError, match="`shrinkage` must lie in"):
        Mahalanobis(shrinkage=2).fit(p)
    with pytest.raises(ValueError, match="`shrinkage` must be one of 'ledoit_wolf', got 'oas'"):
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
    centered = x - np.stack([x[y == k].mean(0) for k in range(3)])[y]
    expected = np.sqrt(centered.var(0).mean()) * 80 ** (-1 / 7)
    assert KernelDensity().fit(x, y).bandwidth_ == pytest.approx(expected)
    with pytest.raises(ValueError, match="`bandwidth` must be positive"):
        KernelDensity(bandwidth=0.0).fit(x)
    with pytest.raises(ValueError, match="`bandwidth` must be one of 'scott'"):
        KernelDensity(bandwidth="silverman").fit(x)
    with pytest.raises(
        ValueError, match="`outputs` must vary within a class for bandwidth='scott'"
    ):
        KernelDensity().fit(np.ones((5, 2)))
    assert KernelDensity(bandwidth=1.0).fit(np.ones((5, 2))).predict([[1, 1]]) == 1
    with pytest.raises(ValueError, match="at least 2 rows, got n_samples = 1"):
        KernelDensity(bandwidth=1.0).fit(np.ones((1, 2)))


@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_dimensionality_of_uniform_rows_is_their_number_of_dimensions(d):
    rng = np.random.default_rng(0)
    frame = np.linalg.qr(rng.normal(size=(6, 6)))[0][:d]
    detector = LocalIntrinsicDimensionality(k=60).fit(rng.uniform(-1, 1, (8_000, d)) @ frame)
    found = detector.anomaly_score(rng.uniform(-0.3, 0.3, (200, d)) @ frame)
    assert found.mean() == pytest.approx(d, rel=0.08)


def test_the_dimensionality_in_closed_form():
    x = np.array([[1.0], [2.0], [4.0], [100.0]])
    detector = LocalIntrinsicDimensionality(k=3).fit(x)
    assert detector.anomaly_score([[0.0]]) == pytest.approx(3 / math.log(8))
    # A row that is there is judged by the others: distances 1, 2 and 98.
    assert detector.anomaly_score([[2.0]]) == pytest.approx(3 / math.log(98**2 / 2))


def test_distances_of_zero_and_equal_distances():
    x = np.array([[1.0], [2.0], [4.0], [100.0]])
    once = LocalIntrinsicDimensionality(k=3).fit(x)
    twice = LocalIntrinsicDimensionality(k=3).fit(np.concatenate([x, x, x[:1]]))
    rows = np.array([[0.0], [1.0], [2.5]])
    np.testing.assert_array_equal(once.anomaly_score(rows), twice.anomaly_score(rows))
    ring = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1], [3, 3]])
    flat = LocalIntrinsicDimensionality(k=4).fit(ring).anomaly_score([[0.0, 0]])
    assert flat == 1 / np.finfo(float).eps
    zeros = np.array([[0.0], [1e-200], [-0.0], [1.0], [2.0]])
    assert np.isfinite(LocalIntrinsicDimensionality(k=2).fit(zeros).anomaly_score(zeros)).all()


def test_fewer_rows_than_neighbours():
    x = clean(n=8)
    with pytest.warns(UserWarning, match="`k` must be at most 7, the number of other rows, got 20"):
        few = LocalIntrinsicDimensionality().fit(x)
    assert few.k_ == 7
    expected = LocalIntrinsicDimensionality(k=7).fit(x)
    np.testing.assert_array_equal(few.anomaly_score(x + 1), expected.anomaly_score(x + 1))
    with pytest.raises(ValueError, match="at least 3 different rows, got 2 of n_samples = 6"):
        LocalIntrinsicDimensionality().fit(np.repeat(x[:2], 3, axis=0))
    with pytest.raises(ValueError, match="`k` must be at least 2, got 1"):
        LocalIntrinsicDimensionality(k=1).fit(x)
