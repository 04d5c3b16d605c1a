"""Draws that belong to a sample: reproducible, independent, and of the right distribution."""

import pytest
import torch
from scipy import stats

from advkit.core import randomness
from advkit.core.norms import lp_norm
from advkit.core.randomness import (
    derived_keys,
    normal,
    salt_and_pepper,
    sample_keys,
    uniform,
    uniform_in_ball,
)

UNIT = (0.0, 1.0)


def samples(n=2000, d=6, dtype=torch.float64):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_keys_follow_the_sample_not_its_place():
    x = samples(50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    keys = sample_keys(x, UNIT, 0, 0)
    assert torch.equal(sample_keys(x[order], UNIT, 0, 0), keys[order])
    assert torch.equal(sample_keys(x[7:8], UNIT, 0, 0), keys[7:8])
    assert len(keys.unique()) == 50


def test_keys_do_not_depend_on_units_dtype_or_memory_format():
    x = (torch.arange(3 * 2 * 4 * 5) * 37 % 256 / 255).view(3, 2, 4, 5)
    keys = sample_keys(x, UNIT, 3)
    assert torch.equal(sample_keys(x * 255, (0, 255), 3), keys)
    assert torch.equal(sample_keys(2 * x - 1, (-1, 1), 3), keys)
    assert torch.equal(sample_keys(x.double(), UNIT, 3), keys)
    assert torch.equal(sample_keys(x.to(memory_format=torch.channels_last), UNIT, 3), keys)


@pytest.mark.parametrize("words", [(1, 0), (0, 1), (2, 2), (-1, 0), (2**63, 0), (10**30, 0)])
def test_every_word_changes_the_keys(words):
    x = samples(20)
    assert (sample_keys(x, UNIT, *words) != sample_keys(x, UNIT, 0, 0)).all()
    assert (sample_keys(x, UNIT, *words) != sample_keys(x, UNIT, *words[::-1], 0)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_numbers_are_uniform_open_and_uncorrelated(dtype):
    u = uniform(sample_keys(samples(), UNIT, 0), 50, dtype)
    assert u.dtype == dtype
    assert u.min() > 0
    assert u.max() < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    across, along = torch.corrcoef(u.T), torch.corrcoef(u[:50])
    for matrix in (across, along):
        off = matrix - torch.diag(matrix.diag())
        assert off.abs().max() < 5 / len(u[0]) ** 0.5


def test_the_largest_draws_stay_below_one():
    """All 64 bits set in the hash is the worst case; 23 and 52 bits leave room for the half."""
    for bits, dtype in ((23, torch.float32), (52, torch.float64)):
        top = (torch.tensor(2**bits - 1).to(dtype) + 0.5) * 2.0**-bits
        assert top < 1


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_points_fill_the_ball_evenly(norm):
    """In d dimensions (|z| / eps)^d of a uniform point is uniform; its signs are fair coins."""
    x = samples()
    n, d = x.shape
    eps = torch.full((n,), 0.7, dtype=x.dtype)
    z = uniform_in_ball(sample_keys(x, UNIT, 0), eps, norm, x)
    share = (lp_norm(z, norm) / eps) ** d
    assert stats.kstest(share.numpy(), "uniform").pvalue > 1e-3
    assert ((z > 0).double().mean(0) - 0.5).abs().max() < 0.05
    biggest = (z / lp_norm(z, norm)[:, None]).abs().argmax(1)
    assert stats.chisquare(torch.bincount(biggest, minlength=d).numpy()).pvalue > 1e-3


def test_directions_in_l2_are_even():
    """A coordinate of a uniform direction in three dimensions is uniform on [-1, 1]."""
    x = samples(d=3)
    z = uniform_in_ball(sample_keys(x, UNIT, 0), torch.ones(len(x)).double(), "l2", x)
    along = z[:, 0] / lp_norm(z, "l2")
    assert stats.kstest(along.numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3


def test_points_on_the_l1_simplex_are_even():
    """The first share of a flat Dirichlet in three dimensions is Beta(1, 2)."""
    x = samples(d=3)
    z = uniform_in_ball(sample_keys(x, UNIT, 0), torch.ones(len(x)).double(), "l1", x)
    share = z[:, 0].abs() / lp_norm(z, "l1")
    assert stats.kstest(share.numpy(), "beta", args=(1, 2)).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_points_have_the_dtype_of_the_sample(dtype):
    x = samples(5).to(dtype)
    for norm in ("linf", "l2", "l1"):
        z = uniform_in_ball(sample_keys(x, UNIT, 0), torch.ones(5).to(dtype), norm, x)
        assert z.dtype == dtype
        assert z.isfinite().all()


def test_there_is_no_l0_ball():
    with pytest.raises(ValueError, match="`norm` must be"):
        uniform_in_ball(torch.zeros(1, dtype=torch.int64), torch.ones(1), "l0", torch.zeros(1, 2))


def test_keys_depend_on_where_a_value_stands():
    x = torch.tensor([[0.1, 0.9, 0.5], [0.9, 0.1, 0.5], [0.5, 0.9, 0.1]])
    assert len(sample_keys(x, UNIT, 0).unique()) == 3


def test_numbers_stand_in_the_middle_of_their_cells(monkeypatch):
    """A hash of zero bits gives half a cell, not zero, which has no logarithm and no quantile."""
    monkeypatch.setattr(randomness, "_stream", lambda keys, start, stop: torch.zeros(1, 1).long())
    assert uniform(torch.zeros(1), 1, torch.float32).item() == 2.0**-24
    assert uniform(torch.zeros(1), 1, torch.float64).item() == 2.0**-53


def test_derived_keys_give_each_sample_other_draws():
    keys = sample_keys(samples(200), UNIT, 0)
    words = [0, 1, 2, -1, 1000, 2**63, 10**30]
    derived = torch.stack([keys, *(derived_keys(keys, word) for word in words)])
    assert derived.dtype == torch.int64
    assert len(derived.unique()) == derived.numel()
    assert torch.equal(derived_keys(keys[7:9], 1), derived[2, 7:9])
    u = torch.stack([uniform(row, 50, torch.float64).flatten() for row in derived])
    assert (torch.corrcoef(u) - torch.eye(len(u))).abs().max() < 5 / u.shape[1] ** 0.5


def test_words_of_a_key_are_derivations_one_after_the_other():
    x = samples(5)
    keys = derived_keys(derived_keys(sample_keys(x, UNIT), 3), 4)
    assert torch.equal(keys, sample_keys(x, UNIT, 3, 4))
    assert not torch.equal(keys, derived_keys(derived_keys(sample_keys(x, UNIT), 4), 3))


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_normal_numbers_are_normal_finite_and_uncorrelated(asked, given):
    z = normal(sample_keys(samples(), UNIT, 0), 50, asked)
    assert z.shape == (2000, 50)
    assert z.dtype == given
    assert z.isfinite().all()
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(float(z.double().std()) - 1) < 0.008
    off = torch.corrcoef(z.T) - torch.eye(50)
    assert off.abs().max() < 5 / 2000**0.5


def test_normal_numbers_are_finite_at_the_ends_of_the_uniform_ones(monkeypatch):
    for word in (0, -1):  # no bit of the hash set, and all of them
        hashed = torch.full((1, 1), word, dtype=torch.int64)
        monkeypatch.setattr(randomness, "_stream", lambda keys, start, stop, hashed=hashed: hashed)
        for dtype in (torch.float32, torch.float64):
            assert normal(torch.zeros(1), 1, dtype).isfinite().all()


def test_salt_and_pepper_sets_the_counted_features_of_each_sample():
    x = 0.25 + samples() / 2
    counts = torch.arange(2000) % 8 + torch.tensor([0.0, 0.9]).repeat(1000)
    noisy = salt_and_pepper(sample_keys(x, UNIT, 0), counts, x, (-1.0, 3.0))
    changed = noisy != x
    assert torch.equal(changed.sum(1), (torch.arange(2000) % 8).clamp(max=6))
    assert set(noisy[changed].tolist()) == {-1.0, 3.0}


def test_salt_and_pepper_chooses_features_and_sides_evenly_and_independently():
    x = 0.25 + samples() / 2
    noisy = salt_and_pepper(sample_keys(x, UNIT, 0), torch.full((2000,), 2.0), x, UNIT)
    changed = noisy != x
    assert stats.chisquare(changed.sum(0).numpy()).pvalue > 1e-3
    upper = (noisy == 1).sum(0)
    assert stats.binomtest(int(upper.sum()), 4000).pvalue > 1e-3
    for feature in range(6):
        assert stats.binomtest(int(upper[feature]), int(changed[:, feature].sum())).pvalue > 1e-3
    both = torch.corrcoef((noisy[changed].view(2000, 2) == 1).double().T)[0, 1]
    assert both.abs() < 5 / 2000**0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_salt_and_pepper_keeps_shape_dtype_and_input(dtype):
    x = (0.25 + samples(10) / 2).to(dtype).view(10, 1, 2, 3)
    before = x.clone()
    noisy = salt_and_pepper(sample_keys(x, UNIT, 0), torch.full((10,), 3.0, dtype=dtype), x, UNIT)
    assert noisy.shape == x.shape
    assert noisy.dtype == dtype
    assert ((noisy != x).flatten(1).sum(1) == 3).all()
    assert torch.equal(x, before)
    alone = salt_and_pepper(sample_keys(x[4:5], UNIT, 0), torch.tensor([3.0]), x[4:5], UNIT)
    assert torch.equal(alone, noisy[4:5])


@pytest.mark.parametrize("block", [1, 7, 64, 10_000])
def test_numbers_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch, block):
    keys = derived_keys(torch.arange(5), 0)
    whole = {dtype: uniform(keys, 33, dtype) for dtype in (torch.float32, torch.float64)}
    monkeypatch.setattr("advkit.core.randomness._BLOCK_SIZE", block)
    for dtype, numbers in whole.items():
        assert torch.equal(uniform(keys, 33, dtype), numbers)
    assert uniform(keys[:0], 3, torch.float32).shape == (0, 3)
