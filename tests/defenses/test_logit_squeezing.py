"""Logit squeezing against its formula in NumPy and against a hand-written loop."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from advkit.defenses.logit_squeezing import LogitSqueezing
from tests.defenses.losses import Watched, gradients, softmax, table
from tests.toys import Linear3, convnet, images


def test_the_value_is_the_formula():
    x, y = table()
    z = x.numpy() @ np.array(Linear3.W).T
    natural = -np.log(softmax(z)[np.arange(12), y.numpy()]).mean()
    value = LogitSqueezing(weight=0.7)(Linear3(), x, y)
    wanted = natural + 0.7 * np.sqrt((z**2).sum(1)).mean()
    np.testing.assert_allclose(value.item(), wanted, rtol=1e-12)


def test_the_gradient_is_that_of_the_formula():
    net, x, y = convnet(dtype=torch.float64), images(8, torch.float64), torch.arange(8) % 3
    by_hand = copy.deepcopy(net)
    z = by_hand(x)
    wanted = gradients(by_hand, F.cross_entropy(z, y) + 0.7 * (z * z).sum(1).sqrt().mean())
    found = gradients(net, LogitSqueezing(weight=0.7)(net, x, y))
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_logits_of_zero_have_a_gradient():
    net = torch.nn.Linear(3, 3)
    torch.nn.init.zeros_(net.weight)
    torch.nn.init.zeros_(net.bias)
    LogitSqueezing(weight=1.0)(net, torch.rand(4, 3), torch.arange(4) % 3).backward()
    assert net.weight.grad.isfinite().all()


def test_the_noise_is_gaussian_clipped_and_new_at_each_call():
    net, x = Watched(torch.nn.Linear(1000, 2)), torch.full((20, 1000), 0.3)
    x[0] = 1
    loss, y = LogitSqueezing(weight=0.1, sigma=0.2), torch.zeros(20, dtype=torch.int64)
    torch.manual_seed(0)
    loss(net, x, y)
    loss(net, x, y)
    first, second = net.seen
    assert not torch.equal(first, second)
    assert first.min() == 0
    assert first.max() == 1
    middle = first[1:]
    inside = 2 * 0.9331928 - 1  # within 1.5 standard deviations
    below = (middle == 0).float().mean().item()
    assert below == pytest.approx(1 - 0.9331928, abs=0.006)
    assert ((middle - 0.3).abs() < 0.3).float().mean().item() == pytest.approx(inside, abs=0.01)
    within_one = ((middle - 0.3).abs() < 0.2).float().mean().item()
    assert within_one == pytest.approx(0.6826895, abs=0.012)
    torch.manual_seed(0)
    loss(net, x, y)
    assert torch.equal(net.seen[-1], first)


def test_without_noise_nothing_is_drawn_and_no_bounds_are_needed():
    x, y = table()
    before = torch.get_rng_state()
    assert LogitSqueezing(weight=0.5)(Linear3(), 100 * x, y).isfinite()
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match=r"bounds \[0, 1\]"):
        LogitSqueezing(weight=0.5, sigma=0.1)(Linear3(), 100 * x, y)
    assert LogitSqueezing(weight=0.5, sigma=10, bounds=(0, 100))(Linear3(), 100 * x, y).isfinite()


def test_bad_arguments():
    for bad in (-1, float("nan")):
        with pytest.raises(ValueError, match="`weight` must be at least 0"):
            LogitSqueezing(weight=bad)
        with pytest.raises(ValueError, match="`sigma` must be at least 0"):
            LogitSqueezing(weight=1.0, sigma=bad)
    with pytest.raises(TypeError, match="`sigma` must be a number"):
        LogitSqueezing(weight=1.0, sigma=True)
    with pytest.raises(ValueError, match="`bounds` must be two finite numbers"):
        LogitSqueezing(weight=1.0, bounds=(0, float("inf")))
