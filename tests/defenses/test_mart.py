"""MART against its formula in NumPy and against a hand-written loop."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from advkit import attacks
from advkit.defenses.mart import MART
from tests.defenses.losses import Watched, gradients, kl, softmax, table
from tests.toys import Halfspace, Linear3, convnet, images

PGD = attacks.PGD(eps=0.2, steps=3)


def test_the_value_is_the_formula():
    x, y = table()
    net = Watched(Linear3())
    value = MART(attack=PGD, beta=2.5)(net, x, y)
    (p, q), rows = (softmax(seen @ np.array(Linear3.W).T) for seen in net.arrays()[-2:]), range(12)
    np.testing.assert_array_equal(net.arrays()[-2], x.numpy())
    others = q.copy()
    others[rows, y] = 0
    boosted = -np.log(q[rows, y]) - np.log(1 - others.max(1))
    wanted = (boosted + 2.5 * kl(p, q) * (1 - p[rows, y])).mean()
    np.testing.assert_allclose(value.item(), wanted, rtol=1e-12)


def test_the_examples_are_those_of_the_attack_on_the_labels():
    x, y = table()
    net = Watched(Linear3())
    bim = attacks.BIM(eps=0.2, steps=3, stop="never")
    MART(attack=attacks.BIM(eps=0.2, steps=3))(net, x, y)
    torch.testing.assert_close(net.seen[-1], bim(Linear3(), x, y))


def test_the_gradient_is_that_of_the_formula_through_every_factor():
    net, x, y = Watched(convnet(dtype=torch.float64)), images(8, torch.float64), torch.arange(8) % 3
    by_hand = copy.deepcopy(net.inner)
    found = gradients(net, MART(attack=PGD, beta=2.5)(net, x, y))
    p, q = by_hand(x).softmax(1), by_hand(net.seen[-1]).softmax(1)
    own = F.one_hot(y, 3).bool()
    boosted = -q[own].log() - (1 - q.masked_fill(own, 0).amax(1)).log()
    kept = (p * (p / q).log()).sum(1) * (1 - p[own])
    wanted = gradients(by_hand, (boosted + 2.5 * kept).sum() / 8)
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_of_two_classes_it_is_twice_the_cross_entropy():
    net, x = Halfspace(torch.tensor([1.0, -2.0, 0.5])), table()[0].float()
    watched, y = Watched(net), torch.arange(12) % 2
    value = MART(attack=PGD, beta=0)(watched, x, y)
    torch.testing.assert_close(value, 2 * F.cross_entropy(net(watched.seen[-1]), y))


@pytest.mark.parametrize("right", [True, False])
def test_confident_nets_are_exact_in_float32(right):
    """Where 1 - p is below the rounding of float32, and where p underflows."""
    x = torch.rand(6, 3, dtype=torch.float64)
    net = Linear3()
    net.weight.data *= 100
    y = net(x).argmax(1) if right else net(x).argmin(1)
    loss = MART(attack=attacks.FGSM(eps=0))
    exact = gradients(net, loss(net, x, y))[0]
    value = loss(net, x, y)
    net, x = net.float(), x.float()
    torch.testing.assert_close(loss(net, x, y).double(), value, rtol=1e-4, atol=1e-6)
    rounded = gradients(net, loss(net, x, y))[0]
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-3, atol=1e-6)


def test_bad_arguments():
    with pytest.raises(TypeError, match="`attack` must be an attack"):
        MART(attack="PGD")
    for beta in (-1, float("nan")):
        with pytest.raises(ValueError, match="`beta` must be at least 0"):
            MART(attack=PGD, beta=beta)
    with pytest.raises(ValueError, match="`mode` must be one of"):
        MART(attack=PGD, mode="train")
