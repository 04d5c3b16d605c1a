import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

from advkit.defenses.mrr.density import fit_density


@pytest.fixture
def drawn():
    """Two defenders' features of 300 inputs of the classes 0, 1 and 3, stretched along few axes."""
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([0, 1, 3]).repeat(100)
    stretch = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.05, 0.01], dtype=torch.float64)
    features = torch.randn(2, 300, 6, generator=generator, dtype=torch.float64) * stretch
    features[1] = features[1, :, [5, 4, 3, 2, 1, 0]] * torch.tensor([1, 1, 1, 9.0, 1, 9]).double()
    return features + y[:, None], y


def fitted(drawn, kind="euclidean", explained=0.9):
    features, y = drawn
    return fit_density(features, y, 4, kind=kind, explained=explained)


def reference(features, y, explained):
    """scikit-learn's axes with the wanted share, and the class means on them."""
    pca = PCA(n_components=explained, svd_solver="full").fit(features)
    z = pca.transform(features)
    return z, {c: z[y == c].mean(0) for c in np.unique(y)}


def test_euclidean_distances_are_those_on_scikit_learns_axes(drawn):
    features, y = drawn
    density = fitted(drawn)
    labels = (y + 1) % 4  # 1, 2 and 0: one that is not known
    found = density.distances(density.project(features), labels)
    assert found.shape == (300, 2)
    for k in range(2):
        z, centers = reference(features[k].numpy(), y.numpy(), 0.9)
        for i in range(300):
            c = int(labels[i])
            expected = np.linalg.norm(z[i] - centers[c]) if c in centers else np.inf
            assert float(found[i, k]) == pytest.approx(expected, rel=1e-6)


def test_ranks_may_differ_between_defenders(drawn):
    density = fitted(drawn)
    ranks = [int((own != 0).any(0).sum()) for own in density.projection]
    expected = [reference(own.numpy(), drawn[1].numpy(), 0.9)[0].shape[1] for own in drawn[0]]
    assert ranks == expected
    assert len(set(ranks)) == 2


def test_gaussian_distances_are_mahalanobis_with_shrinkage(drawn):
    features, y = drawn
    density = fitted(drawn, "gaussian")
    found = density.distances(density.project(features), y)
    for k in range(2):
        z, centers = reference(features[k].numpy(), y.numpy(), 0.9)
        for c in (0, 1, 3):
            rows = y.numpy() == c
            model = LedoitWolf(assume_centered=True).fit(z[rows] - centers[c])
            expected = np.sqrt(model.mahalanobis(z[rows] - centers[c]))
            np.testing.assert_allclose(found[rows, k], expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["euclidean", "gaussian"])
def test_gradients_are_those_of_differences(drawn, kind):
    density = fitted(drawn, kind)
    features, labels = drawn[0][:, :4], drawn[1][:4]
    assert torch.autograd.gradcheck(
        lambda v: density.distances(density.project(v), labels), features.clone().requires_grad_()
    )


def test_all_the_variance_takes_all_the_axes(drawn):
    assert fitted(drawn, explained=1.0).projection.shape == (2, 6, 6)


def test_the_first_ones_are_those_of_the_whole(drawn):
    features, y = drawn
    for kind in ("euclidean", "gaussian"):
        density = fitted(drawn, kind)
        whole = density.distances(density.project(features), y)
        first = density.first(1)
        assert torch.equal(first.distances(first.project(features[:1]), y), whole[:, :1])
