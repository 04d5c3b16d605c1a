"""TRADES against its formula in NumPy, pass by pass, and against a hand-written loop."""

import copy
import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from advkit import attacks
from advkit.core.norms import lp_norm
from advkit.core.results import AttackResult
from advkit.defenses.trades import TRADES
from tests.defenses.losses import Watched, gradients, kl, softmax, table
from tests.toys import Linear3, convnet, images

W = np.array(Linear3.W)
PGD = attacks.PGD(eps=0.2, steps=4, step_size=0.07)


def climbed(x, x_adv, eps, step_size):
    """One step of x_adv up KL(p(x) || p(x_adv)) of the linear model, in NumPy."""
    p, q = softmax(x @ W.T), softmax(x_adv @ W.T)
    moved = x_adv + step_size * np.sign((q - p) @ W)
    return np.clip(np.clip(moved, x - eps, x + eps), 0, 1)


def test_each_step_climbs_the_divergence_and_the_value_is_the_formula():
    x, y = table()
    net = Watched(Linear3())
    value = TRADES(attack=PGD, beta=2.5)(net, x, y)
    clean, *iterates, _, outer_x, outer_adv = net.arrays()
    np.testing.assert_array_equal(clean, x.numpy())
    np.testing.assert_array_equal(outer_x, x.numpy())
    assert len(iterates) == 5
    assert (np.abs(iterates[0] - clean) > 1e-4).mean() > 0.9  # at the clean input nothing climbs
    for before, after in pairwise(iterates):
        np.testing.assert_allclose(after, climbed(clean, before, 0.2, 0.07), atol=1e-12)
    p = softmax(clean @ W.T)
    furthest = np.argmax([kl(p, softmax(at @ W.T)) for at in iterates], axis=0)
    np.testing.assert_array_equal(outer_adv, np.stack(iterates)[furthest, np.arange(len(x))])
    q = softmax(outer_adv @ W.T)
    natural = -np.log(p[np.arange(len(x)), y.numpy()]).mean()
    np.testing.assert_allclose(value.item(), natural + 2.5 * kl(p, q).mean(), rtol=1e-12)


def test_the_gradient_is_that_of_the_formula_through_both_passes():
    net, x, y = Watched(convnet(dtype=torch.float64)), images(8, torch.float64), torch.arange(8) % 3
    by_hand = copy.deepcopy(net.inner)
    found = gradients(net, TRADES(attack=PGD, beta=2.5)(net, x, y))
    p, q = by_hand(x).softmax(1), by_hand(net.seen[-1]).softmax(1)
    natural = -p.gather(1, y[:, None]).log().mean()
    wanted = gradients(by_hand, natural + 2.5 * (p * (p / q).log()).sum() / 8)
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_examples_do_not_depend_on_the_labels():
    net, (x, y) = Watched(Linear3()), table()
    made = []
    for labels in (y, (y + 1) % 3):
        torch.manual_seed(0)
        TRADES(attack=PGD)(net, x, labels)
        made.append(net.seen[-1])
    assert torch.equal(*made)


def test_the_largest_divergence_counts_even_where_the_module_becomes_surer():
    """The engine's strongest iterate, by the margin, would be of less divergence."""
    net, x = Watched(convnet()), images(64)
    TRADES(attack=attacks.PGD(eps=0.1, steps=7, restarts=2))(net, x, torch.arange(64) % 3)
    clean, *tried, strongest, _, taken = (
        net.inner(s).detach().softmax(1).numpy() for s in net.seen
    )
    most = np.max([kl(clean, answer) for answer in tried], axis=0)
    np.testing.assert_allclose(kl(clean, taken), most, rtol=1e-3, atol=1e-6)
    assert (kl(clean, strongest) < 0.5 * most).mean() > 0.1
    surer = taken.max(1) > clean.max(1)
    assert (surer & (taken.argmax(1) == clean.argmax(1))).any()


def test_what_restarts_climb_is_of_the_same_samples():
    x, y = table()
    net = Watched(Linear3())
    loss = TRADES(attack=attacks.PGD(eps=0.2, steps=2, step_size=0.07, restarts=3))
    loss(net, x, y)
    clean, *iterates, _, _, _ = net.arrays()
    assert len(iterates) == 9
    for start in (0, 3, 6):
        for i in (start, start + 1):
            wanted = climbed(clean, iterates[i], 0.2, 0.07)
            np.testing.assert_allclose(iterates[i + 1], wanted, atol=1e-12)


def test_without_a_price_it_is_the_clean_loss():
    net, (x, y) = Linear3(), table()
    value = TRADES(attack=PGD, beta=0)(net, x, y)
    torch.testing.assert_close(value, nn.functional.cross_entropy(net(x), y))


def test_confident_nets_have_finite_values_and_gradients():
    net = Linear3().float()
    net.weight.data *= 500
    x, y = table()
    value = TRADES(attack=PGD)(net, x.float(), y)
    value.backward()
    assert value.isfinite()
    assert net.weight.grad.isfinite().all()
    assert net.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("mode", "crafted_in"), [("eval", False), ("keep", True)])
def test_the_clean_answers_come_in_the_mode_of_crafting(mode, crafted_in):
    net = Watched(convnet()).train()
    TRADES(attack=PGD, mode=mode)(net, images(4), torch.arange(4) % 3)
    # The clean inputs, five iterates and what came back; then the passes to learn from.
    assert net.modes == [crafted_in] * 7 + [True, True]


def test_the_clean_answers_leave_no_cast_without_a_graph_behind():
    """Autocast keeps casts of the weights; those of the pass without gradients must not stay."""
    net = convnet()
    with torch.autocast("cpu", torch.bfloat16):
        value = TRADES(attack=PGD, beta=0)(net, images(8), torch.arange(8) % 3)
    value.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@dataclasses.dataclass(frozen=True)
class InParts:
    """An attack that sends one sample at a time."""

    loss: object = "ce"
    random_start: bool = True

    def __call__(self, model, x, y=None, *, target=None):
        self.loss(model.logits(x[:1]), y[:1])

    def run(self, model, x, y=None, *, target=None) -> AttackResult:
        raise NotImplementedError


@pytest.mark.parametrize(
    "attack",
    [
        attacks.PGD(eps=0.3, norm="l2", steps=8),
        attacks.PGD(eps=0.6, norm="l1", steps=8),
        attacks.APGD(eps=0.6, norm="l1", steps=10),
        attacks.PGD(eps=torch.linspace(0.1, 0.3, 8), norm="l2", steps=8),
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_examples_lie_in_the_ball_although_the_attack_begins_outside(attack, dtype):
    net, x = convnet(dtype=dtype), images(dtype=dtype)
    loss = TRADES(attack=attack)
    x_adv = loss._maximize_divergence(net, x, torch.zeros(len(x), dtype=torch.int64))
    distance = lp_norm(x_adv.double() - x.double(), attack.norm)
    slack = 1e-4 if dtype == torch.float32 else 3e-2
    assert (distance <= (1 + slack) * torch.as_tensor(attack.eps)).all()
    assert (distance > 0.3 * torch.as_tensor(attack.eps)).float().mean() > 0.5


def test_sparse_examples_lie_in_a_ball_of_pixels():
    """The divergence has no gradient at the clean inputs, where SparsePGD begins."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), torch.rand(8, 3, 4, 4)
    loss = TRADES(attack=attacks.SparsePGD(eps=3, unit="pixel", steps=6))
    delta = loss._maximize_divergence(net, x, torch.zeros(8, dtype=torch.int64)) - x
    assert (lp_norm(delta, "l0_pixel") == 3).all()
    assert (lp_norm(delta, "l0") > 3).all()


def test_attacks_that_cannot_climb_are_refused():
    x, y = table()
    with pytest.raises(ValueError, match=r"`attack` must query all 12 samples at each step, got 1"):
        TRADES(attack=InParts())(Linear3(), x, y)
    for attack in (attacks.DeepFool(), attacks.Square(eps=0.1)):
        with pytest.raises(TypeError, match="`attack` must be a dataclass with a loss to replace"):
            TRADES(attack=attack)
    for attack in (
        attacks.FGSM(eps=0.1),
        attacks.BIM(eps=0.1),
        attacks.PGD(eps=0.1, random_start=False),
    ):
        with pytest.raises(ValueError, match="`attack` must have a random_start"):
            TRADES(attack=attack)
    with pytest.raises(ValueError, match="`attack` must have its default loss 'ce'.* got 'margin'"):
        TRADES(attack=attacks.PGD(eps=0.1, loss="margin"))
    with pytest.raises(ValueError, match="`attack` must not aim at classes, got APGD"):
        TRADES(attack=attacks.APGD(eps=0.1, candidates=2))
    with pytest.raises(ValueError, match="`attack` must have stop='never' or None"):
        TRADES(attack=attacks.PGD(eps=0.1, stop="first"))
    with pytest.raises(TypeError, match="`attack` must be an attack"):
        TRADES(attack=attacks.PGD)
    for beta in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="`beta` must be at least 0"):
            TRADES(attack=PGD, beta=beta)
    with pytest.raises(TypeError, match="`beta` must be a number"):
        TRADES(attack=PGD, beta="6")
