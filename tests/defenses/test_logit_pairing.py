"""Logit pairing against its formula in NumPy and against a hand-written loop."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from advkit import attacks
from advkit.defenses.logit_pairing import LogitPairing
from tests.defenses.losses import Watched, gradients, softmax, table
from tests.toys import Linear3, convnet, images

W = np.array(Linear3.W)
PGD = attacks.PGD(eps=0.2, steps=3)


def cross_entropy(z, y):
    return -np.log(softmax(z)[np.arange(len(z)), y.numpy()]).mean()


def test_the_adversarial_value_is_the_formula():
    x, y = table()
    net = Watched(Linear3())
    value = LogitPairing(attack=PGD, weight=0.7)(net, x, y)
    z, z_adv = (seen @ W.T for seen in net.arrays()[-2:])
    np.testing.assert_array_equal(net.arrays()[-2], x.numpy())
    mixed = 0.5 * cross_entropy(z, y) + 0.5 * cross_entropy(z_adv, y)
    np.testing.assert_allclose(value.item(), mixed + 0.7 * ((z - z_adv) ** 2).mean(), rtol=1e-12)


def test_the_examples_are_those_of_the_attack_on_the_labels():
    x, y = table()
    net = Watched(Linear3())
    LogitPairing(attack=attacks.BIM(eps=0.2, steps=3))(net, x, y)
    bim = attacks.BIM(eps=0.2, steps=3, stop="never")
    torch.testing.assert_close(net.seen[-1], bim(Linear3(), x, y))


@pytest.mark.parametrize(("n", "pairs"), [(12, 6), (7, 3), (2, 1), (1, 0)])
def test_the_clean_value_is_the_formula(n, pairs):
    x, y = table(n)
    value = LogitPairing(kind="clean", weight=0.7)(Linear3(), x, y)
    z = x.numpy() @ W.T
    apart = [((z[i] - z[i + pairs]) ** 2).mean() for i in range(pairs)]
    wanted = cross_entropy(z, y) + 0.7 * (np.mean(apart) if pairs else 0)
    np.testing.assert_allclose(value.item(), wanted, rtol=1e-12)


@pytest.mark.parametrize("kind", ["adversarial", "clean"])
def test_the_gradient_flows_through_both_of_a_pair(kind):
    net, x, y = Watched(convnet(dtype=torch.float64)), images(8, torch.float64), torch.arange(8) % 3
    by_hand = copy.deepcopy(net.inner)
    loss = LogitPairing(attack=PGD if kind == "adversarial" else None, kind=kind, weight=0.7)
    found = gradients(net, loss(net, x, y))
    if kind == "adversarial":
        z, other = by_hand(x), by_hand(net.seen[-1])
        value = (F.cross_entropy(z, y) + F.cross_entropy(other, y)) / 2
        value = value + 0.7 * F.mse_loss(z, other)
    else:
        z = by_hand(x)
        value = F.cross_entropy(z, y) + 0.7 * F.mse_loss(z[:4], z[4:])
    for got, want in zip(found, gradients(by_hand, value), strict=True):
        torch.testing.assert_close(got, want)


def test_bounds_are_those_of_the_attack():
    x, y = table()
    loss = LogitPairing(attack=attacks.FGSM(eps=30), bounds=(0, 255))
    assert loss(Linear3(), 255 * x, y).isfinite()
    with pytest.raises(ValueError, match=r"bounds \[0, 1\]"):
        LogitPairing(attack=PGD)(Linear3(), 255 * x, y)


@pytest.mark.parametrize(("mode", "crafted_in"), [("eval", False), ("keep", True)])
def test_the_mode_is_that_of_crafting(mode, crafted_in):
    net = Watched(convnet()).train()
    LogitPairing(attack=PGD, mode=mode)(net, images(4), torch.arange(4) % 3)
    assert net.modes == [crafted_in] * (len(net.modes) - 2) + [True, True]
    assert net.inner.norm.num_batches_tracked == 2


def test_bad_arguments():
    with pytest.raises(TypeError, match="`attack` must be an attack.* got None"):
        LogitPairing()
    with pytest.raises(ValueError, match="`attack` must be None for clean pairing, got PGD"):
        LogitPairing(attack=PGD, kind="clean")
    with pytest.raises(ValueError, match="`kind` must be one of 'adversarial', 'clean'"):
        LogitPairing(attack=PGD, kind="random")
    for weight in (-1, float("nan")):
        with pytest.raises(ValueError, match="`weight` must be at least 0"):
            LogitPairing(attack=PGD, weight=weight)
    with pytest.raises(ValueError, match="`mode` must be one of"):
        LogitPairing(attack=PGD, mode="train")
    with pytest.raises(ValueError, match="`bounds` must be two finite numbers"):
        LogitPairing(attack=PGD, bounds=(1, 0))
