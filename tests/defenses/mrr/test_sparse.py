"""Orthogonal matching pursuit, against scikit-learn's and where the answer is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import orthogonal_mp
from torch.nn import functional as F

from advkit.defenses.mrr import sparse
from advkit.defenses.mrr.sparse import orthogonal_matching_pursuit


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unit_rows(k, d, seed=1, dtype=torch.float64):
    return F.normalize(normal(k, d, seed=seed, dtype=dtype), dim=1)


def length(v):
    return torch.linalg.vector_norm(v, dim=1)


@settings(deadline=None, max_examples=30)
@given(
    m=st.integers(1, 12),
    d=st.integers(2, 20),
    k=st.integers(1, 40),
    sparsity=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_it_is_that_of_scikit_learn(m, d, k, sparsity, seed):
    sparsity = min(sparsity, d - 1, k)  # more would leave rounding to choose by
    signals, atoms = normal(m, d, seed=seed), unit_rows(k, d, seed=seed + 1)
    codes = orthogonal_mp(atoms.numpy().T, signals.numpy().T, n_nonzero_coefs=sparsity)
    expected = atoms.numpy().T @ codes.reshape(k, m)
    np.testing.assert_allclose(
        orthogonal_matching_pursuit(signals, atoms, sparsity).numpy(), expected.T, atol=1e-9
    )


@pytest.mark.parametrize("sparsity", [1, 4, 9])
def test_orthonormal_atoms_keep_the_largest_coefficients(sparsity):
    atoms = torch.linalg.qr(normal(9, 9)).Q
    codes = normal(20, 9, seed=3)
    smallest_kept = codes.abs().topk(sparsity, dim=1).values[:, -1:]
    kept = codes.where(codes.abs() >= smallest_kept, 0)
    torch.testing.assert_close(
        orthogonal_matching_pursuit(codes @ atoms, atoms, sparsity), kept @ atoms
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_atoms_never_leave_more_and_all_that_are_needed_leave_nothing(dtype):
    signals, atoms = normal(50, 12, dtype=dtype), unit_rows(30, 12, dtype=dtype)
    left = torch.stack(
        [length(signals - orthogonal_matching_pursuit(signals, atoms, s)) for s in range(1, 25)]
    )
    rounding = 10 * torch.finfo(dtype).eps * length(signals)
    assert (left[1:] <= left[:-1] + rounding).all()
    assert (left[0] < length(signals)).all()
    assert (left[12:] <= rounding).all()


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_a_signal_does_not_depend_on_its_batch(chunk, monkeypatch):
    signals, atoms = normal(7, 12), unit_rows(30, 12)
    whole = orthogonal_matching_pursuit(signals, atoms, 4)
    monkeypatch.setattr(sparse, "_CHUNK_SIZE", chunk)
    torch.testing.assert_close(
        orthogonal_matching_pursuit(signals, atoms, 4), whole, rtol=0, atol=1e-12
    )
    assert orthogonal_matching_pursuit(signals[:0], atoms, 4).shape == (0, 12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_signals_that_are_used_up_and_atoms_that_are_alike_or_zero_are_no_trouble(dtype):
    atoms = unit_rows(4, 8, dtype=dtype)
    atoms = torch.cat([atoms, atoms, -atoms[:1], torch.zeros_like(atoms[:2])])
    signals = torch.cat([torch.zeros_like(atoms[:1]), 3 * atoms[:4], atoms[1:2] - 2 * atoms[3:4]])
    for sparsity in (4, 11):
        found = orthogonal_matching_pursuit(signals, atoms, sparsity)
        torch.testing.assert_close(found, signals, rtol=0, atol=20 * torch.finfo(dtype).eps)
        assert found.isfinite().all()
    nothing = torch.zeros_like(atoms)
    assert torch.equal(orthogonal_matching_pursuit(signals, nothing, 3), torch.zeros_like(signals))


def test_atoms_that_are_nearly_alike_still_give_a_projection():
    """What is left is orthogonal to the approximation, though atoms differ by a thousandth."""
    atoms = F.normalize(unit_rows(1, 30) + 1e-3 * normal(20, 30, seed=2), dim=1).float()
    signals = normal(40, 30, seed=3).float()
    found = orthogonal_matching_pursuit(signals, atoms, 12)
    cosine = F.cosine_similarity(found, signals - found)
    assert cosine.abs().max() < 1e-5
    assert (length(found) <= length(signals)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_more_than_the_span_of_the_atoms_is_used(dtype):
    atoms, signals = unit_rows(5, 30, dtype=dtype), normal(40, 30, seed=3, dtype=dtype)
    expected = (atoms.T @ torch.linalg.lstsq(atoms.T, signals.T).solution).T
    for sparsity in (5, 9):
        found = orthogonal_matching_pursuit(signals, torch.cat([atoms, atoms]), sparsity)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_neither_a_graph_nor_a_trace():
    signals, atoms = normal(3, 6).requires_grad_(), unit_rows(8, 6)
    before = signals.detach().clone(), atoms.clone()
    found = orthogonal_matching_pursuit(signals, atoms, 2)
    assert not found.requires_grad
    assert torch.equal(signals, before[0])
    assert torch.equal(atoms, before[1])
