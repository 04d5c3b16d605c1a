"""Fewer bits, the median and non-local means, against SciPy and plain NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import median_filter
from torch import nn

from advkit import TorchClassifier, attacks
from advkit.defenses.feature_squeezing import FeatureSqueezing, NonLocalMeans
from tests.toys import Halfspace, convnet, images


def squeezed(x, bounds=(0.0, 1.0), **given):
    return FeatureSqueezing(TorchClassifier(nn.Flatten(), bounds), **given).step(x)


def colour(n=3, height=7, width=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, height, width, generator=generator, dtype=dtype)


@settings(deadline=None, max_examples=40)
@given(
    bits=st.integers(1, 16),
    lower=st.floats(-300, 300),
    span=st.floats(0.01, 600),
    seed=st.integers(0, 2**31),
)
def test_bits_give_the_nearest_of_evenly_spread_values(bits, lower, span, seed):
    bounds = (lower, lower + span)
    share = torch.rand(4, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = (lower + share * span).clamp(*bounds)
    values = torch.linspace(*bounds, 2**bits, dtype=torch.float64)
    found = squeezed(x, bounds, bits=bits)
    nearest = (x[..., None] - values).abs().amin(-1)
    torch.testing.assert_close((found - x).abs(), nearest, rtol=0, atol=1e-9 * span)
    assert ((found[..., None] - values).abs().amin(-1) <= 1e-9 * span).all()
    assert torch.equal(squeezed(found, bounds, bits=bits), found)
    assert (found >= lower).all()
    assert (found <= bounds[1]).all()


def test_one_bit_is_black_or_white_and_eight_bits_are_what_files_have():
    x = torch.tensor([[0.0, 0.49, 0.51, 1.0]])
    assert squeezed(x, bits=1).tolist() == [[0, 0, 1, 1]]
    assert squeezed(2 * x - 1, (-1, 1), bits=1).tolist() == [[-1, -1, 1, 1]]
    torch.testing.assert_close(squeezed(images(), bits=8), images())
    half = images().half()
    assert squeezed(half, bits=16).dtype == torch.float16
    torch.testing.assert_close(squeezed(half, bits=16), half, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", [2, 3, 4, 5, 9])
def test_the_median_is_that_of_scipy(side):
    x = colour(height=7, width=3)
    expected = median_filter(x.numpy(), (1, 1, side, side), mode="reflect")
    assert torch.equal(squeezed(x, median=side), torch.from_numpy(expected))


def test_the_median_takes_a_lone_pixel_out():
    x = torch.full((1, 1, 5, 5), 0.3)
    x[..., 2, 2] = 1
    assert torch.equal(squeezed(x, median=3), torch.full_like(x, 0.3))
    assert squeezed(x, median=2).max() == 0.3
    rows = torch.rand(2, 3, 1, 1)
    assert torch.equal(squeezed(rows, median=3), rows)


def non_local_means(x, search, patch, scale):
    """One pixel of one image at a time."""
    reach, frame = search // 2, patch // 2
    c, height, width = x.shape
    side = [(0, 0), *[(reach + frame,) * 2] * 2]
    around = np.pad(x, side, mode="symmetric")
    out = np.zeros_like(x)
    for row in range(height):
        for column in range(width):
            i, j = row + reach + frame, column + reach + frame
            mine = around[:, i - frame : i + frame + 1, j - frame : j + frame + 1]
            total, weights = np.zeros(c), 0.0
            for k in range(i - reach, i + reach + 1):
                for m in range(j - reach, j + reach + 1):
                    other = around[:, k - frame : k + frame + 1, m - frame : m + frame + 1]
                    weight = np.exp(-((mine - other) ** 2).mean() / scale**2)
                    total, weights = total + weight * around[:, k, m], weights + weight
            out[:, row, column] = total / weights
    return out


@pytest.mark.parametrize(("search", "patch"), [(3, 1), (5, 3), (3, 5)])
def test_non_local_means_are_those_of_the_definition(search, patch):
    x = colour(n=2)
    smooth = NonLocalMeans(search_size=search, patch_size=patch, strength=60.0)
    expected = [non_local_means(image.numpy(), search, patch, 60 / 255) for image in x]
    found = squeezed(x, non_local_means=smooth)
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=1e-12)
    moved = squeezed(6 * x - 2, (-2, 4), non_local_means=smooth)
    torch.testing.assert_close(moved, 6 * found - 2)
    torch.testing.assert_close(squeezed(x.float(), non_local_means=smooth), found.float())


def test_non_local_means_between_nothing_and_a_plain_mean():
    x = colour(n=1)
    weak = squeezed(x, non_local_means=NonLocalMeans(search_size=3, strength=0.01))
    torch.testing.assert_close(weak, x)
    strong = squeezed(x, non_local_means=NonLocalMeans(search_size=3, strength=1e6))
    around = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    torch.testing.assert_close(strong, nn.functional.avg_pool2d(around, 3, 1))


def test_squeezers_follow_one_another():
    x, smooth = colour(), NonLocalMeans(search_size=3)
    by_itself = squeezed(squeezed(squeezed(x, bits=2), median=3), non_local_means=smooth)
    assert torch.equal(squeezed(x, bits=2, median=3, non_local_means=smooth), by_itself)
    smoothed_first = squeezed(squeezed(x, non_local_means=smooth), bits=2)
    assert not torch.equal(smoothed_first, squeezed(x, bits=2, non_local_means=smooth))


def test_the_model_is_the_inner_one_of_squeezed_inputs():
    x = images()
    model = FeatureSqueezing(convnet(), bits=2, median=3)
    inner = TorchClassifier(convnet())
    for ask in ("logits", "scores", "predict"):
        assert torch.equal(getattr(model, ask)(x), getattr(inner, ask)(model.step(x)))
    assert (model.bounds, model.num_classes) == ((0, 1), 3)


def test_the_gradient_leaves_out_the_rounding():
    x = images(dtype=torch.float64).requires_grad_()
    net = convnet(dtype=torch.float64)
    logits = FeatureSqueezing(net, bits=3).logits(x)
    (grad,) = torch.autograd.grad(logits[:, 0].sum(), x)
    inner = ((7 * x.detach()).round() / 7).requires_grad_()
    (expected,) = torch.autograd.grad(net(inner)[:, 0].sum(), inner)
    torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-12)


def test_the_gradient_of_the_median_goes_to_the_pixel_that_it_is():
    """After the rounding, which moves the middle from one pixel to another."""
    x = torch.tensor([[[[0.0, 0.1, 0.9], [0.2, 0.45, 1.0], [0.52, 0.3, 0.8]]]], requires_grad=True)
    w = torch.zeros(9)
    w[4] = 2.0  # the middle, whose window is all of the image
    model = FeatureSqueezing(Halfspace(w), bits=3, median=3)
    (grad,) = torch.autograd.grad(model.logits(x)[:, 1].sum(), x)
    middle = (x.detach() * 7).round().flatten().median()
    chosen = grad.nonzero()
    assert len(chosen) == 1
    assert float(grad.sum()) == 2
    assert (7 * x[tuple(chosen[0])]).round() == middle


def test_the_gradient_of_non_local_means_is_their_own():
    x = colour(n=1, height=3, width=3).requires_grad_()
    w = torch.linspace(-1, 2, 27, dtype=torch.float64)
    smooth = NonLocalMeans(search_size=3, strength=90.0)
    model = FeatureSqueezing(Halfspace(w), non_local_means=smooth)
    assert torch.autograd.gradcheck(lambda v: model.logits(v)[:, 1], x)


def test_an_attack_that_knows_finds_what_the_step_hides():
    """Two bits of a plane: to cross it, a value has to pass the middle between two levels."""
    w = torch.ones(9)
    x = torch.full((1, 1, 3, 3), 1 / 3)
    model = FeatureSqueezing(Halfspace(w, b=-3.5), bits=2)  # 3 at 1/3, 6 at 2/3
    y = model.predict(x)
    assert y.item() == 0
    assert not attacks.PGD(eps=0.16, steps=20).run(model, x, y).success.item()
    assert attacks.PGD(eps=0.18, steps=20).run(model, x, y).success.item()


def test_arguments():
    with pytest.raises(ValueError, match="`bits`, `median` or `non_local_means` must be given"):
        FeatureSqueezing(convnet())
    for wrong, said in (
        ({"bits": 0}, "`bits` must be at least 1, got 0"),
        ({"bits": 17}, "`bits` must be at most 16, got 17"),
        ({"median": 1}, "`median` must be at least 2, got 1"),
    ):
        with pytest.raises(ValueError, match=said):
            FeatureSqueezing(convnet(), **wrong)
    for wrong, said in (
        ({"bits": 1.0}, "`bits` must be an int"),
        ({"median": True}, "`median` must be an int"),
        ({"non_local_means": 3}, "`non_local_means` must be a NonLocalMeans or None, got int: 3"),
    ):
        with pytest.raises(TypeError, match=said):
            FeatureSqueezing(convnet(), **wrong)
    for wrong, said in (
        ({"search_size": 4}, "`search_size` must be odd, got 4"),
        ({"search_size": 1}, "`search_size` must be at least 3"),
        ({"patch_size": 2}, "`patch_size` must be odd"),
        ({"strength": 0.0}, "`strength` must be positive"),
        ({"strength": math.nan}, "`strength` must be positive"),
    ):
        with pytest.raises(ValueError, match=said):
            NonLocalMeans(**wrong)


def test_filters_want_images():
    table = torch.rand(4, 6)
    assert squeezed(table, bits=1).shape == (4, 6)
    for given_ in ({"median": 3}, {"non_local_means": NonLocalMeans()}):
        with pytest.raises(ValueError, match=r"`x` must have shape .* got \(4, 6\)"):
            squeezed(table, **given_)


def test_it_shows_what_it_squeezes():
    model = FeatureSqueezing(convnet(), bits=4, non_local_means=NonLocalMeans(search_size=5))
    shown = repr(model)
    assert "bits=4" in shown
    assert "search_size=5" in shown
    assert "median" not in shown
