"""Projections and directions, against their definitions and against independent solvers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linprog

from advkit.core.norms import (
    finite_gradient,
    lp_norm,
    normalize,
    per_sample,
    project,
    steepest,
)

NORMS = ("linf", "l2", "l1")
every_norm = pytest.mark.parametrize("norm", NORMS)
fast = settings(deadline=None, max_examples=60, derandomize=True)


@st.composite
def batches(draw, elements=None):
    """Float64 batches `(n, *features)` of ranks 2 to 4, zeros and ties among them."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=4, max_side=5))
    values = elements or st.one_of(st.floats(-1e3, 1e3), st.sampled_from([0.0, 1.0, -1.0]))
    return torch.from_numpy(draw(hnp.arrays(np.float64, shape, elements=values)))


radii = st.one_of(st.floats(1e-3, 1e3), st.just(0.0))


@every_norm
@given(delta=batches(), eps=radii)
@fast
def test_projection_is_feasible_idempotent_and_leaves_the_interior_alone(norm, delta, eps):
    radius = delta.new_full((len(delta),), eps)
    projected = project(delta, radius, norm)
    assert (lp_norm(projected, norm) <= eps * (1 + 1e-9) + 1e-12).all()
    torch.testing.assert_close(project(projected, radius, norm), projected)
    inside = lp_norm(delta, norm) <= eps
    torch.testing.assert_close(projected[inside], delta[inside], rtol=0, atol=0)


@every_norm
@given(delta=batches(), eps=radii, seed=st.integers(0, 2**31 - 1))
@fast
def test_projection_is_the_nearest_feasible_point(norm, delta, eps, seed):
    """Variational inequality: (delta - P) . (z - P) <= 0 for every feasible z, vertices too."""
    projected = project(delta, delta.new_full((len(delta),), eps), norm)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(delta.shape, generator=generator, dtype=delta.dtype)
    vertex = torch.zeros_like(delta).flatten(1)
    top = delta.flatten(1).abs().argmax(1, keepdim=True)
    vertex.scatter_(1, top, delta.flatten(1).gather(1, top).sign())
    for candidate in (z, delta, delta.sign(), vertex.view_as(delta)):
        length = lp_norm(candidate, norm).clamp_min(1e-300)
        feasible = candidate * per_sample(eps / length, candidate)
        inner = ((delta - projected) * (feasible - projected)).flatten(1).sum(1)
        assert (inner <= 1e-8 * (1 + lp_norm(delta, "l2") * eps)).all()


@given(delta=batches(), eps=st.floats(1e-2, 1e2))
@fast
def test_l1_projection_agrees_with_bisection(delta, eps):
    """The soft threshold found by halving an interval, one sample at a time."""
    expected = []
    for row in delta.flatten(1).numpy():
        low, high = 0.0, np.abs(row).max()
        if np.abs(row).sum() <= eps:
            high = 0.0
        for _ in range(200):
            level = (low + high) / 2
            if np.maximum(np.abs(row) - level, 0).sum() > eps:
                low = level
            else:
                high = level
        expected.append(np.sign(row) * np.maximum(np.abs(row) - high, 0))
    found = project(delta, delta.new_full((len(delta),), eps), "l1").flatten(1).numpy()
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-8)


def test_each_sample_has_its_own_radius():
    delta = torch.tensor([[3.0, -4.0], [3.0, -4.0]])
    eps = torch.tensor([1.0, 10.0])
    torch.testing.assert_close(project(delta, eps, "l2"), torch.tensor([[0.6, -0.8], [3.0, -4.0]]))
    torch.testing.assert_close(
        project(delta, eps, "linf"), torch.tensor([[1.0, -1.0], [3.0, -4.0]])
    )
    torch.testing.assert_close(project(delta, eps, "l1"), torch.tensor([[0.0, -1.0], [3.0, -4.0]]))


def test_there_is_no_projection_onto_l0():
    with pytest.raises(ValueError, match="`norm` must be"):
        project(torch.zeros(1, 2), torch.ones(1), "l0")


@given(v=batches())
@fast
def test_norms_agree_with_numpy(v):
    rows = v.flatten(1).numpy()
    for norm, order in (("l0", 0), ("l1", 1), ("l2", 2), ("linf", np.inf)):
        np.testing.assert_allclose(lp_norm(v, norm), np.linalg.norm(rows, order, axis=1))


@every_norm
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_normalized_vectors_have_norm_one_and_zero_stays_zero(norm, scale):
    v = scale * torch.tensor([[3.0, -4.0], [0.0, 0.0], [0.0, 1.0]])
    length = lp_norm(normalize(v, norm), norm)
    torch.testing.assert_close(length, torch.tensor([1.0, 0.0, 1.0]))


@every_norm
@given(grad=batches(), radius=st.floats(1e-3, 10.0))
@fast
def test_steepest_gains_the_dual_norm_where_the_box_is_far(norm, grad, radius):
    """max of g.d over |d| <= r is r times the dual norm of g."""
    dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]
    x = torch.zeros_like(grad)
    step = steepest(grad, grad.new_full((len(grad),), radius), norm, x, (-100, 100))
    gain = (grad * step).flatten(1).sum(1)
    torch.testing.assert_close(gain, radius * lp_norm(grad, dual))
    assert (lp_norm(step, norm) <= radius * (1 + 1e-9)).all()


@given(grad=batches(), x=st.integers(0, 99), radius=st.floats(0.1, 5.0))
@settings(deadline=None, max_examples=30, derandomize=True)
def test_steepest_in_l1_is_the_optimum_of_the_linear_program_with_the_box(grad, x, radius):
    """max g.d over |d|_1 <= r, 0 <= x + d <= 1, with d split into its two signs for the solver."""
    x = torch.rand(grad.shape, generator=torch.Generator().manual_seed(x), dtype=grad.dtype)
    step = steepest(grad, grad.new_full((len(grad),), radius), "l1", x, (0, 1))
    assert ((x + step >= -1e-12) & (x + step <= 1 + 1e-12)).all()
    for g, d, at in zip(grad.flatten(1), step.flatten(1), x.flatten(1), strict=True):
        room = [*((0, float(1 - v)) for v in at), *((0, float(v)) for v in at)]
        cost = np.concatenate([-g.numpy(), g.numpy()])
        best = linprog(cost, A_ub=np.ones((1, 2 * len(g))), b_ub=[radius], bounds=room)
        assert float(g @ d) == pytest.approx(-best.fun, rel=1e-6, abs=1e-6)
        assert float(d.abs().sum()) <= radius + 1e-9


def test_l1_projection_is_feasible_in_float32_and_high_dimension():
    delta = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) + 1
    eps = torch.tensor([1e-3, 12.0])
    assert (lp_norm(project(delta, eps, "l1"), "l1") <= eps * (1 + 1e-4)).all()


def looked_at(monkeypatch, few):
    """How many features are looked at first, and a list of how many were, look by look."""
    looks = []
    topk = torch.Tensor.topk

    def counted(v, k, **options):
        looks.append(k)
        return topk(v, k, **options)

    monkeypatch.setattr("advkit.core.norms._FIRST_TOP_K", few)
    monkeypatch.setattr(torch.Tensor, "topk", counted)
    return looks


@pytest.mark.parametrize("ties", [False, True])
def test_in_l1_a_look_at_the_largest_features_is_a_look_at_all(monkeypatch, ties):
    generator = torch.Generator().manual_seed(0)
    v, x = torch.randn(2, 5, 300, generator=generator, dtype=torch.float64)
    if ties:
        v = v.mul(2).round()
    x = x.abs().clamp(0, 1)
    eps = torch.tensor([0.3, 1, 5, 40, 1e4]).double()
    rows = [slice(0, 2), slice(0, 5), slice(3, 4)]
    jobs = [
        job
        for r in rows
        for job in (
            lambda r=r: project(v[r], eps[r], "l1"),
            lambda r=r: steepest(v[r], eps[r], "l1", x[r], (0, 1)),
        )
    ]
    whole = [job() for job in jobs]
    looks = looked_at(monkeypatch, few=8)
    for job, expected in zip(jobs, whole, strict=True):
        looks.clear()
        torch.testing.assert_close(job(), expected, rtol=1e-12, atol=1e-12)
        assert looks[0] == 8
    assert looks == [8, 32, 128]  # one row, for which nearly all features are needed


def test_in_l1_nothing_is_looked_at_on_a_device_that_would_wait(monkeypatch):
    monkeypatch.setattr("advkit.core.norms.asynchronous", lambda device: True)
    looks = looked_at(monkeypatch, few=2)
    project(torch.ones(1, 9), torch.ones(1), "l1")
    assert not looks


@pytest.fixture(params=[False, True], ids=["cpu", "asynchronous"])
def device(request, monkeypatch):
    """Take the CPU for what it is, or for a device that a look at a value would wait for."""
    monkeypatch.setattr("advkit.core.norms.asynchronous", lambda device: request.param)


@pytest.mark.parametrize(
    ("dtype", "scales"),
    [
        (torch.float32, [1e-40, 1e-30, 1e-16, 1.0, 1e20, 1e38]),
        (torch.bfloat16, [1e-30, 1.0, 1e30]),
        (torch.float64, [1e-300, 1e-170, 1.0, 1e200]),
        (torch.float16, [1e-4, 1.0, 1e4]),
    ],
)
def test_lengths_of_tiny_and_huge_samples_lose_no_squares(device, dtype, scales):
    v = (
        torch.tensor([[0.75, -1.0]], dtype=torch.float64)
        * torch.tensor(scales, dtype=torch.float64)[:, None]
    )
    v = torch.cat([v, torch.zeros(1, 2, dtype=torch.float64)]).to(dtype)
    expected = torch.hypot(*(v.double() / 2).unbind(1)) * 2
    finfo = torch.finfo(dtype)
    torch.testing.assert_close(
        lp_norm(v, "l2").double(), expected, rtol=4 * finfo.eps, atol=finfo.smallest_normal / 2
    )


def test_ordinary_lengths_are_those_of_torch_to_the_bit(device):
    v = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    v *= torch.tensor([1e-10, 1e-3, 1.0, 1e3, 1e15])[:, None]
    assert torch.equal(lp_norm(v, "l2"), torch.linalg.vector_norm(v, dim=1))


def test_infinite_entries_have_infinite_length_and_none_has_no_samples(device):
    v = torch.tensor([[torch.inf, 1.0], [torch.nan, 1.0], [3.0, 4.0]])
    torch.testing.assert_close(
        lp_norm(v, "l2"), torch.tensor([torch.inf, torch.nan, 5.0]), equal_nan=True
    )
    assert lp_norm(v[:0], "l2").shape == (0,)


def test_one_extreme_sample_changes_no_other(device):
    v = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    v[1] *= 1e30
    alone = torch.cat([lp_norm(row[None], "l2") for row in v])
    assert torch.equal(lp_norm(v, "l2"), alone)
    assert alone.isfinite().all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("size", [1e20, 1e30, 1e38])
def test_what_is_far_outside_a_ball_is_projected_to_its_edge(device, norm, size):
    delta = size * torch.tensor([[0.5, -1.0], [1.0, 0.0]])
    eps = torch.tensor([2.0, size / 4])
    torch.testing.assert_close(lp_norm(project(delta, eps, norm), norm), eps)


def test_a_length_beyond_all_numbers_is_within_the_largest_ball(device):
    delta = torch.full((1, 9), 3e38)
    assert torch.equal(project(delta, torch.tensor([torch.finfo().max]), "l2"), delta)


def test_entries_that_are_not_finite_leave_the_others_as_they_are(device):
    nan, inf = torch.nan, torch.inf
    grad = torch.tensor(
        [[1.0, -3.0, 0.5], [nan, -2.0, inf], [-inf, 0.25, nan], [inf, 0.0, -inf], [nan, nan, 0.0]]
    )
    expected = [[1.0, -3.0, 0.5], [0.0, -2.0, 2.0], [-0.25, 0.25, 0.0], [1.0, 0.0, -1.0], [0.0] * 3]
    assert finite_gradient(grad).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_gradients_come_back_to_the_bit(device, dtype):
    grad = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    grad[0, 0, 0], grad[1, 1, 1] = torch.finfo(dtype).max, -0.0
    grad[0, 0, 1] = torch.finfo(dtype).max  # the sum overflows, no entry does
    found = finite_gradient(grad)
    assert torch.equal(found, grad)
    assert torch.equal(found.signbit(), grad.signbit())
