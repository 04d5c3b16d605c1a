"""Label smoothing against its formula in NumPy and against a hand-written loop."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from advkit.defenses.label_smoothing import LabelSmoothing
from tests.defenses.losses import gradients, softmax, table
from tests.toys import Linear3, convnet, images


@pytest.mark.parametrize("smoothing", [0, 0.1, 0.5, 1])
def test_the_value_is_the_formula(smoothing):
    x, y = table()
    p = softmax(x.numpy() @ np.array(Linear3.W).T)
    soft = (1 - smoothing) * np.eye(3)[y.numpy()] + smoothing / 3
    value = LabelSmoothing(smoothing=smoothing)(Linear3(), x, y)
    np.testing.assert_allclose(value.item(), -(soft * np.log(p)).sum(1).mean(), rtol=1e-12)


def test_the_gradient_is_that_of_the_formula():
    net, x, y = convnet(dtype=torch.float64), images(8, torch.float64), torch.arange(8) % 3
    by_hand = copy.deepcopy(net)
    soft = 0.7 * F.one_hot(y, 3) + 0.1
    wanted = gradients(by_hand, -(soft * by_hand(x).log_softmax(1)).sum() / 8)
    for got, want in zip(
        gradients(net, LabelSmoothing(smoothing=0.3)(net, x, y)), wanted, strict=True
    ):
        torch.testing.assert_close(got, want)


def test_of_a_single_logit_both_classes_have_their_share():
    x, y = table()
    net = torch.nn.Linear(3, 1).double()
    soft = 0.9 * (y % 2).double() + 0.05
    wanted = F.binary_cross_entropy_with_logits(net(x)[:, 0], soft)
    torch.testing.assert_close(LabelSmoothing()(net, x, y % 2), wanted)


def test_bad_arguments():
    for smoothing in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"`smoothing` must lie in \[0, 1\]"):
            LabelSmoothing(smoothing=smoothing)
    with pytest.raises(TypeError, match="`smoothing` must be a number"):
        LabelSmoothing(smoothing="0.1")
