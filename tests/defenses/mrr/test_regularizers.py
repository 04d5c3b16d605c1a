import numpy as np
import pytest
import torch
from torch.nn import functional as F

from advkit.defenses.mrr.regularizers import constrain_centers, regularizer


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(20, 5, generator=generator, dtype=torch.float64))
    centers = 2 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    return features, centers, torch.tensor([0] * 11 + [1] * 4 + [2] * 3 + [3] * 2)


def value(drawn, kind, compactness, separation):
    features, centers, y = drawn
    weights = {"compactness": compactness, "separation": separation}
    return float(regularizer(features, constrain_centers(centers, kind), y, kind=kind, **weights))


def spread(f, c, y):
    return np.mean([np.sum((f[i] - c[y[i]]) ** 2) for i in range(len(f))])


def test_nearest_drives_unit_centers_apart_by_half_the_fourth_power_of_their_distance(drawn):
    f, c, y = (part.numpy() for part in drawn)
    c = c / np.linalg.norm(c, axis=1, keepdims=True)
    apart = []
    for own in y:
        distances = [np.linalg.norm(c[own] - c[j]) for j in range(4) if j != own]
        apart.append(-(min(distances) ** 4) / 2)
    expected = 0.5 * spread(f, c, y) + 0.03 * np.mean(apart)
    assert value(drawn, "nearest", 0.5, 0.03) == pytest.approx(expected)


def test_pcl_is_the_first_equation_of_the_paper(drawn):
    f, c, y = (part.numpy() for part in drawn)
    terms = []
    for i in range(len(f)):
        squares = np.sum((c - f[i]) ** 2, axis=1)
        terms.append(2 * squares[y[i]] - squares.sum())
    expected = 0.1 * (np.mean(terms) + np.sum((np.linalg.norm(c, axis=1) - 1) ** 2))
    assert value(drawn, "pcl", 0.1, 7.0) == pytest.approx(expected)


def test_center_pulls_alone(drawn):
    f, c, y = (part.numpy() for part in drawn)
    assert value(drawn, "center", 0.5, 7.0) == pytest.approx(0.5 * spread(f, c, y))


def test_a_step_down_drives_two_centers_apart(drawn):
    features, y = drawn[0].requires_grad_(), torch.arange(20) % 2
    centers = F.normalize(drawn[1][:2]).requires_grad_()
    regularizer(
        features,
        constrain_centers(centers, "nearest"),
        y,
        kind="nearest",
        compactness=0.0,
        separation=1.0,
    ).backward()
    assert features.grad is None or not features.grad.any()
    closest = torch.pdist(centers).min()
    moved = constrain_centers(centers - 0.05 * centers.grad, "nearest")
    assert torch.pdist(moved).min() > closest
