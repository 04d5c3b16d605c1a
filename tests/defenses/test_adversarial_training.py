"""Adversarial training, and what every loss with an attack inside has from the base."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import advkit
from advkit import attacks, defenses
from tests.toys import convnet, images

PGD = attacks.PGD(eps=0.1, steps=3, random_start=False)


def state(net):
    """Modes, buffers and gradients, to be compared."""
    modes = [m.training for m in net.modules()]
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    grads = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    return modes, buffers, grads


def gradients(net, value):
    net.zero_grad(set_to_none=True)
    value.backward()
    return [p.grad.clone() for p in net.parameters()]


@pytest.fixture
def net():
    net = convnet().train()
    net.norm.eval()  # frozen by its user: a plain train() at the end would wake it
    return net


@pytest.fixture
def batch():
    return images(8), torch.arange(8) % 3


def hand_written(net, x, y, weight):
    """The loop that users write today: craft in evaluation mode, then a step on what came out."""
    crafter = copy.deepcopy(net).eval()
    x_adv = x.clone()
    for i in range(3):
        leaf = x_adv.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(crafter(leaf), y, reduction="sum"), leaf)
        x_adv = x_adv + 0.1 * (3 - i) / 3 * grad.sign()
        x_adv = (x + (x_adv - x).clamp(-0.1, 0.1)).clamp(0, 1)
    value = (1 - weight) * F.cross_entropy(net(x_adv), y)
    return value + weight * F.cross_entropy(net(x), y) if weight else value


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.3])
def test_the_gradient_is_that_of_the_outer_loss_alone(net, batch, weight):
    net.drop.eval()
    last = attacks.PGD(eps=0.1, steps=3, random_start=False, loss=sharpest)
    loss = defenses.AdversarialTraining(attack=last, clean_weight=weight)
    wanted = gradients(net, hand_written(net, *batch, weight))
    found = gradients(net, loss(net, *batch))
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want)


def sharpest(logits, y):
    return F.cross_entropy(logits, y, reduction="none")


def test_a_weight_of_one_is_the_clean_loss(net, batch):
    loss = defenses.AdversarialTraining(attack=PGD, clean_weight=1.0)
    net.eval()
    torch.testing.assert_close(loss(net, *batch), F.cross_entropy(net(batch[0]), batch[1]))


def test_crafting_leaves_no_trace(net, batch):
    seen = []

    class Watched(type(PGD)):
        def craft(self, model, x, y=None):
            before = state(net)
            result = super().craft(model, x, y)
            after = state(net)
            seen.append(before[0] == after[0])
            seen.append(all(torch.equal(before[1][k], after[1][k]) for k in before[1]))
            seen.append(all(g is None for g in after[2]))
            return result

    loss = defenses.AdversarialTraining(attack=Watched(eps=0.1, steps=3))
    value = loss(net, *batch)
    assert seen == [True] * 3
    assert net.training
    assert not net.norm.training
    assert net.calls == 1  # the outer pass alone
    assert all(p.grad is None for p in net.parameters())
    value.backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(("mode", "crafted_in"), [("eval", False), ("keep", True)])
def test_the_mode_of_crafting(batch, mode, crafted_in):
    modes = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.BatchNorm1d(3))

        def forward(self, x):
            modes.append(self.training)
            return self.inner(x)

    net = Spy()
    before = net.inner[2].running_mean.clone()
    loss = defenses.AdversarialTraining(attack=PGD, mode=mode)
    loss(net, *batch)
    assert modes[:-1] == [crafted_in] * (len(modes) - 1)
    assert modes[-1]
    assert net.inner[2].num_batches_tracked == 1
    assert not torch.equal(net.inner[2].running_mean, before)


def test_every_sample_is_attacked_to_the_end_unless_the_attack_says_otherwise(batch):
    net, (x, _) = convnet(), batch
    wrong = (net(x).argmax(1) + 1) % 3
    changed = []

    def spy(module, inputs):
        changed.append((inputs[0] - x).flatten(1).abs().amax(1))

    for stop in (None, "first"):
        loss = defenses.AdversarialTraining(attack=attacks.FGSM(eps=0.1, stop=stop))
        handle = net.register_forward_pre_hook(spy)
        loss(net, x, wrong)
        handle.remove()
        assert bool((changed[-1] > 0.05).all()) is (stop is None)


def test_starts_differ_from_call_to_call_and_follow_the_global_seed(net, batch):
    net.drop.eval()
    loss = defenses.AdversarialTraining(attack=attacks.PGD(eps=0.1, steps=1))
    torch.manual_seed(3)
    first, second = loss(net, *batch).item(), loss(net, *batch).item()
    torch.manual_seed(3)
    assert loss(net, *batch).item() == first != second


def test_an_attack_without_random_numbers_draws_none(net, batch):
    net.drop.eval()
    before = torch.get_rng_state()
    defenses.AdversarialTraining(attack=attacks.BIM(eps=0.1, steps=2))(net, *batch)
    assert torch.equal(torch.get_rng_state(), before)


def test_bounds_are_those_given(batch):
    net, (x, y) = convnet(), batch
    loss = defenses.AdversarialTraining(attack=attacks.FGSM(eps=30), bounds=(0, 255))
    assert loss(net, 255 * x, y).isfinite()
    with pytest.raises(ValueError, match=r"bounds \[0, 1\]"):
        defenses.AdversarialTraining(attack=attacks.FGSM(eps=0.1))(net, 255 * x, y)


def test_a_net_of_one_logit(batch):
    x, _ = batch
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 1))
    y = torch.arange(8) % 2
    x_adv = attacks.FGSM(eps=0.1, stop="never")(net, x, y)
    value = defenses.AdversarialTraining(attack=attacks.FGSM(eps=0.1))(net, x, y)
    wanted = F.binary_cross_entropy_with_logits(net(x_adv)[:, 0], y.float())
    torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("attack", [PGD, attacks.DeepFool()])
def test_a_vanished_gradient_is_no_warning_while_it_learns(attack, batch):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return self.bias + 0 * x.flatten(1)[:, :3]

    flat, (x, y) = Flat(), batch
    with pytest.warns(advkit.InconclusiveWarning):
        attack.run(flat, x, torch.zeros_like(y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = defenses.AdversarialTraining(attack=attack)
        loss(flat, x, torch.zeros_like(y)).backward()


@pytest.mark.parametrize("attack", [PGD, attacks.PGD(eps=0.1, steps=2, stop="first")])
def test_autocast_lets_the_weights_learn(attack, batch):
    """Casts of the weights that are made without a graph must not be those of the outer loss."""
    net = convnet()
    with torch.autocast("cpu", torch.bfloat16):
        value = defenses.AdversarialTraining(attack=attack)(net, *batch)
    value.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


class TestComposition:
    def test_sums_and_weights_are_losses(self, net, batch):
        net.drop.eval()
        clean = defenses.AdversarialTraining(attack=PGD, clean_weight=1.0)
        adversarial = defenses.AdversarialTraining(attack=PGD)

        def penalty(module, x, y):
            return module.head.weight.square().sum()

        loss = 0.25 * clean + adversarial * 2 + penalty
        wanted = 0.25 * clean(net, *batch) + 2 * adversarial(net, *batch) + penalty(net, *batch)
        torch.testing.assert_close(loss(net, *batch), wanted)
        torch.testing.assert_close((penalty + 0.25 * clean + 2 * adversarial)(net, *batch), wanted)
        torch.testing.assert_close((3 * loss)(net, *batch), 3 * wanted)
        assert [w for w, _ in (3 * loss).terms] == [0.75, 6, 3]
        assert isinstance(loss, defenses.TrainingLoss)

    def test_the_builtin_sum(self, net, batch):
        net.eval()
        clean = defenses.AdversarialTraining(attack=PGD, clean_weight=1.0)
        torch.testing.assert_close(sum([clean, clean])(net, *batch), 2 * clean(net, *batch))

    def test_what_is_no_loss_cannot_be_added(self):
        loss = defenses.AdversarialTraining(attack=PGD)
        for other in (1, "loss"):
            with pytest.raises(TypeError):
                loss + other
            with pytest.raises(TypeError):
                other + loss
        with pytest.raises(ValueError, match="`weight` must be at least 0"):
            -1 * loss
        with pytest.raises(TypeError, match="`weight` must be a number"):
            loss * loss


def test_bad_arguments(net, batch):
    x, y = batch
    with pytest.raises(TypeError, match="`attack` must be an attack"):
        defenses.AdversarialTraining(attack=attacks.PGD)
    with pytest.raises(TypeError, match="`attack` must be an attack"):
        defenses.AdversarialTraining(attack="PGD")
    with pytest.raises(ValueError, match="`clean_weight` must lie in"):
        defenses.AdversarialTraining(attack=PGD, clean_weight=1.5)
    with pytest.raises(ValueError, match="`clean_weight` must lie in"):
        defenses.AdversarialTraining(attack=PGD, clean_weight=float("nan"))
    with pytest.raises(ValueError, match="`bounds` must be two finite numbers"):
        defenses.AdversarialTraining(attack=PGD, bounds=(1, 0))
    with pytest.raises(ValueError, match="`mode` must be one of"):
        defenses.AdversarialTraining(attack=PGD, mode="train")
    loss = defenses.AdversarialTraining(attack=PGD)
    with pytest.raises(TypeError, match=r"`module` must be a torch\.nn\.Module"):
        loss(advkit.TorchClassifier(net), x, y)
    with pytest.raises(ValueError, match="`y` must have shape"):
        loss(net, x, y[:3])
    with pytest.raises(ValueError, match="at least one sample"):
        loss(net, x[:0], y[:0])
    with pytest.raises(ValueError, match="`y` must be below 3"):
        loss(net, x, y + 2)
