"""Projections onto a ball or a plane and the box, against bisection and linear programs."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from advkit.core.box_projections import project_onto_l1_ball_and_box, project_onto_plane_and_box

BOUNDS = (-1.0, 2.0)


def points(d, n=30, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(*BOUNDS, size=(n, d))
    x[rng.uniform(size=x.shape) < 0.2] = BOUNDS[0]
    return x, rng.normal(size=(n, d)), rng


def by_bisection(delta, x, eps):
    """The threshold of the l1 ball in the box, one sample at a time."""
    room = np.where(delta > 0, BOUNDS[1] - x, x - BOUNDS[0])
    low, high = 0.0, np.abs(delta).max()

    def size(threshold):
        return np.minimum(np.clip(np.abs(delta) - threshold, 0, None), room)

    if size(0).sum() <= eps:
        return np.sign(delta) * size(0)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if size(middle).sum() > eps else (low, middle)
    return np.sign(delta) * size(high)


@pytest.mark.parametrize("d", [1, 2, 7, 300])
def test_the_l1_ball_in_the_box(d):
    x, delta, rng = points(d)
    delta *= 3
    eps = rng.uniform(0, 0.5 * d, size=len(x))
    eps[:2] = 0, 1e-9
    found = project_onto_l1_ball_and_box(*map(torch.from_numpy, (delta, x, eps)), BOUNDS).numpy()
    expected = np.stack([by_bisection(*one) for one in zip(delta, x, eps, strict=True)])
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert (np.abs(found).sum(1) <= eps * (1 + 1e-12)).all()


def test_no_point_of_the_l1_ball_in_the_box_is_nearer():
    x, delta, rng = points(6)
    eps = rng.uniform(0.1, 2, size=len(x))
    found = project_onto_l1_ball_and_box(*map(torch.from_numpy, (delta, x, eps)), BOUNDS).numpy()
    others = rng.dirichlet(np.ones(7), size=(200, len(x)))[:, :, :6] * eps[:, None]
    others = np.clip(x + others * rng.choice([-1, 1], size=others.shape), *BOUNDS) - x
    distance = np.linalg.norm(others - delta, axis=2)
    assert (np.linalg.norm(found - delta, axis=1) <= distance.min(0) + 1e-12).all()


def test_half_precision_and_huge_steps_stay_in_the_l1_ball():
    x = torch.rand(8, 50)
    for dtype, factor in ((torch.float16, 1), (torch.bfloat16, 1), (torch.float32, 1e30)):
        delta = (factor * torch.randn(8, 50)).to(dtype)
        found = project_onto_l1_ball_and_box(delta, x.to(dtype), torch.full((8,), 2.0), (0, 1))
        assert found.dtype == dtype
        assert (found.double().abs().sum(1) <= 2.0 * (1 + torch.finfo(dtype).eps)).all()


def shortest(x, w, gap, norm):
    """The shortest step to the plane in the box by scipy, `None` where they do not meet."""
    low, high, d = BOUNDS[0] - x, BOUNDS[1] - x, len(x)
    if norm == "l2":
        start = np.where(w * gap > 0, high, low)
        if abs(w @ start) < abs(gap):
            return None
        found = minimize(
            lambda v: v @ v, start * abs(gap) / abs(w @ start), jac=lambda v: 2 * v,
            bounds=list(zip(low, high, strict=True)), method="SLSQP", tol=1e-14,
            constraints={"type": "eq", "fun": lambda v: w @ v - gap, "jac": lambda v: w},
        )  # fmt: skip
        return np.linalg.norm(found.x)
    if norm == "linf":  # variables: the step and its length
        cost = np.append(np.zeros(d), 1)
        limits = np.block([[np.eye(d), -np.ones((d, 1))], [-np.eye(d), -np.ones((d, 1))]])
        found = linprog(
            cost, limits, np.zeros(2 * d), np.append(w, 0)[None], [gap],
            bounds=[*zip(low, high, strict=True), (0, None)],
        )  # fmt: skip
    else:  # variables: the parts of the step upward and downward
        found = linprog(
            np.ones(2 * d), None, None, np.append(w, -w)[None], [gap],
            bounds=[*((0, v) for v in high), *((0, -v) for v in low)],
        )  # fmt: skip
    return found.fun if found.status == 0 else None


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_shortest_step_to_a_plane_in_the_box(norm):
    x, w, rng = points(5, n=40)
    w[:, 0] = 0
    gap = rng.normal(size=len(x)) * 3
    found = project_onto_plane_and_box(*map(torch.from_numpy, (x, w, gap)), norm, BOUNDS).numpy()
    assert (found[:, 0] == 0).all()
    assert ((x + found >= BOUNDS[0] - 1e-12) & (x + found <= BOUNDS[1] + 1e-12)).all()
    lengths = np.linalg.norm(found, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
    met = 0
    for i in range(len(x)):
        expected = shortest(x[i], w[i], gap[i], norm)
        if expected is None:  # the corner of the box nearest to the plane
            corner = np.where(w[i] * gap[i] > 0, BOUNDS[1], BOUNDS[0])
            np.testing.assert_allclose((x[i] + found[i])[1:], corner[1:])
            continue
        met += 1
        np.testing.assert_allclose(w[i] @ found[i], gap[i], atol=1e-12)
        np.testing.assert_allclose(lengths[i], expected, atol=1e-6)
    assert 5 < met < len(x)


def fewest_to_cross(gains, gap):
    """The least number of `gains` that reach `gap`, over all subsets; `None` if all do not."""
    for count in range(len(gains) + 1):
        if any(sum(some) >= gap for some in itertools.combinations(gains, count)):
            return count
    return None


@pytest.mark.parametrize("d", [1, 3, 7])
def test_the_fewest_features_that_cross_a_plane(d):
    x, w, rng = points(d, n=60)
    w[rng.uniform(size=w.shape) < 0.2] = 0
    gap = rng.normal(size=len(x)) * 2
    found = project_onto_plane_and_box(*map(torch.from_numpy, (x, w, gap)), "l0", BOUNDS).numpy()
    met, moved = 0, found != 0
    for i in range(len(x)):
        corner = np.where(w[i] * gap[i] > 0, BOUNDS[1], BOUNDS[0])
        useful = (w[i] != 0) & (corner != x[i])
        np.testing.assert_allclose((x[i] + found[i])[moved[i]], corner[moved[i]])
        assert not (moved[i] & ~useful).any()
        expected = fewest_to_cross((np.abs(w[i]) * np.abs(corner - x[i])).tolist(), abs(gap[i]))
        if expected is None:
            assert (moved[i] == useful).all()
            continue
        met += 1
        assert moved[i].sum() == expected
        assert w[i] @ found[i] * np.sign(gap[i]) >= abs(gap[i]) - 1e-12
    assert met > 5
    assert met < len(x)


def test_few_of_many_features_cross_a_plane():
    """More features than are ordered at first, all of one gain, or of falling gains."""
    x, gap = torch.zeros(2, 3000, dtype=torch.float64), torch.tensor([700.5, -2.5]).double()
    w = torch.stack([torch.ones(3000), -torch.linspace(1, 0, 3000)]).double()
    found = project_onto_plane_and_box(x, w, gap, "l0", (0, 1))
    assert found.count_nonzero(1).tolist() == [701, 3]
    assert found[1, :3].tolist() == [1, 1, 1]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_no_gradient_and_no_gap_give_no_step(norm):
    x, w = torch.rand(2, 4), torch.stack([torch.zeros(4), torch.ones(4)])
    assert (project_onto_plane_and_box(x, w, torch.tensor([1.0, 0.0]), norm, (0, 1)) == 0).all()
