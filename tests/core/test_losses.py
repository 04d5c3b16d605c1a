"""Losses against formulas written out in NumPy and against torch's own."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from advkit.core.losses import (
    LOSSES,
    dlr,
    dlr_at_target,
    get_loss,
    log_odds_loss,
    logit_gap,
    loss_toward,
    margin,
    targeted_dlr,
)


@pytest.fixture
def logits():
    return 3 * torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def y():
    return torch.arange(40) % 5


def test_softplus_of_the_log_odds_is_the_cross_entropy(logits, y):
    expected = F.cross_entropy(logits, y, reduction="none")
    torch.testing.assert_close(F.softplus(log_odds_loss(logits, y)), expected)


def test_log_odds_have_the_direction_of_the_cross_entropy(logits, y):
    logits.requires_grad_()
    (ours,) = torch.autograd.grad(log_odds_loss(logits, y).sum(), logits)
    (theirs,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), logits)
    p = logits.softmax(1).gather(1, y[:, None])
    torch.testing.assert_close(ours * (1 - p), theirs)


def test_log_odds_keep_a_gradient_where_the_cross_entropy_has_none(y):
    confident = 200 * F.one_hot(y, 5).float()
    confident.requires_grad_()
    (theirs,) = torch.autograd.grad(F.cross_entropy(confident, y, reduction="sum"), confident)
    (ours,) = torch.autograd.grad(log_odds_loss(confident, y).sum(), confident)
    assert (theirs == 0).all()
    torch.testing.assert_close(ours.gather(1, y[:, None]), -torch.ones(40, 1))
    torch.testing.assert_close(ours.sum(1), torch.zeros(40), atol=1e-6, rtol=0)


def test_margin_and_dlr_match_numpy(logits, y):
    z, labels = logits.numpy(), y.numpy()
    for row, label, m, ratio in zip(z, labels, margin(logits, y), dlr(logits, y), strict=True):
        other = max(v for k, v in enumerate(row) if k != label)
        ordered = np.sort(row)[::-1]
        assert float(m) == pytest.approx(other - row[label])
        assert float(ratio) == pytest.approx((other - row[label]) / (ordered[0] - ordered[2]))


def test_margin_is_positive_exactly_when_misclassified(logits, y):
    assert torch.equal(margin(logits, y) > 0, logits.argmax(1) != y)


def test_dlr_does_not_depend_on_scale_or_shift(logits, y):
    torch.testing.assert_close(dlr(1000 * logits - 7, y), dlr(logits, y))


def test_dlr_of_too_few_classes_names_the_losses_that_do():
    y = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(
        ValueError, match="`loss` must be 'ce' or 'margin' with 2 classes, got 'dlr'"
    ):
        dlr(torch.rand(4, 2), y)
    for of_three in (dlr_at_target, lambda z, y: targeted_dlr(z, y, y + 1)):
        with pytest.raises(ValueError, match="with 3 classes, got 'dlr', which needs four"):
            of_three(torch.rand(4, 3), y)


def test_targeted_dlr_on_plain_numbers(logits, y):
    candidate = (y + 1) % logits.shape[1]
    at_class, at_target = targeted_dlr(logits, y, candidate), dlr_at_target(logits, candidate)
    for i, row in enumerate(logits.numpy()):
        ordered = np.sort(row)[::-1]
        scale = ordered[0] - (ordered[2] + ordered[3]) / 2
        aim = row[candidate[i]]
        assert float(at_class[i]) == pytest.approx((aim - row[y[i]]) / scale)
        others = max(v for k, v in enumerate(row) if k != candidate[i])
        assert float(at_target[i]) == pytest.approx((others - aim) / scale)


def test_losses_at_a_class_grow_towards_it(logits, y):
    candidate = (y + 1) % logits.shape[1]
    for loss in ("ce", "margin", "dlr", margin):
        z = logits.clone().requires_grad_()
        loss_toward(loss)(z, y, candidate).sum().backward()
        assert (z.grad.gather(1, candidate[:, None]) > 0).all() or loss == "dlr"
    assert torch.equal(loss_toward("margin")(logits, y, candidate), logit_gap(logits, y, candidate))
    assert torch.equal(loss_toward("ce")(logits, y, candidate), -LOSSES["ce"](logits, candidate))


@pytest.mark.parametrize("name", LOSSES)
def test_negative_logits_and_ties_are_no_special_case(name):
    z = torch.tensor([[-5.0, -7.0, -9.0], [-3.0, -3.0, -3.0]])
    value = get_loss(name)(z, torch.tensor([0, 1]))
    assert value.isfinite().all()
    assert value[0] < 0


def test_a_callable_gets_copies_which_it_may_write_to(logits):
    def writes(logits, y):
        logits[:, 0] = -9
        y.zero_()
        return logits.amax(1)

    y = torch.ones(40, dtype=torch.int64)
    before = logits.clone().requires_grad_()
    value = get_loss(writes)(before, y)
    assert torch.equal(before, logits)
    assert (y == 1).all()
    assert torch.equal(value, logits[:, 1:].amax(1).clamp_min(-9))
    value.sum().backward()
    assert before.grad[:, 1:].sum() == 40
    assert torch.equal(get_loss(margin)(logits, y), margin(logits, y))
