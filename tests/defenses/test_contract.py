"""What every training loss must do, whatever it adds up."""

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import nn

from tests.defenses.losses import LOSSES, scaled
from tests.toys import convnet, images


@pytest.fixture(params=LOSSES, ids=lambda case: type(case[0]).__name__)
def case(request):
    return request.param


@pytest.fixture
def loss(case):
    return copy.deepcopy(case[0])  # one of them remembers what it has met


@pytest.fixture
def x():
    return images(8)


@pytest.fixture
def y():
    return torch.arange(8) % 3


class Answering(nn.Module):
    """A net whose logits come in a mapping or as an attribute."""

    @dataclasses.dataclass
    class Output:
        logits: torch.Tensor

    def __init__(self, net, form):
        super().__init__()
        self.net = net
        self.form = form

    def forward(self, x):
        logits = self.net(x)
        return {"logits": logits} if self.form == "mapping" else self.Output(logits)


class Smaller(nn.Module):
    """A net of inputs in [0, 1] for inputs in [0, 255]."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x / 255)


def drawn(loss, net, x, y, seed=0):
    """The value of a loss that has met nothing yet, its random numbers from `seed`."""
    torch.manual_seed(seed)
    return copy.deepcopy(loss)(net, x, y)


def same(value, other, **tolerance):
    torch.testing.assert_close(value, other, **tolerance)


class TestContract:
    def test_the_value_is_a_scalar_that_every_parameter_learns_from(self, loss, x, y):
        net = convnet().train()
        value = loss(net, x, y)
        assert value.shape == ()
        assert value.dtype == torch.float32
        value.backward()
        for name, p in net.named_parameters():
            assert p.grad.isfinite().all(), name
            assert p.grad.abs().sum() > 0, name

    def test_the_seed_decides(self, loss, x, y):
        net = convnet()
        assert drawn(loss, net, x, y).item() == drawn(loss, net, x, y).item()

    def test_nothing_is_left_but_what_the_outer_passes_leave(self, case, loss, x, y):
        net = convnet().train()
        net.norm.eval()  # frozen by its user: a plain train() at the end would wake it
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        before = [b.clone() for b in net.norm.buffers()]
        x_before, y_before = x.clone(), y.clone()
        loss(net, x, y)
        assert [m.training for m in net.children()] == [True, False, True, True]
        assert net.calls == case[1]
        assert all(torch.equal(b, c) for b, c in zip(before, net.norm.buffers(), strict=True))
        assert all(torch.equal(p.grad, torch.ones_like(p)) for p in net.parameters())
        assert torch.equal(x, x_before)
        assert not x.requires_grad
        assert torch.equal(y, y_before)

    def test_labels_of_every_form(self, loss, x, y):
        net = convnet()
        value = drawn(loss, net, x, y)
        for form in (y.int(), nn.functional.one_hot(y)):
            same(drawn(loss, net, x, form), value, rtol=0, atol=0)

    def test_labels_that_there_is_no_class_of(self, loss, x, y):
        with pytest.raises(ValueError, match="`y` must be below 3"):
            loss(convnet(), x, y + 1)
        with pytest.raises(ValueError, match="`y` must not be negative"):
            loss(convnet(), x, y - 1)

    def test_a_net_of_one_logit(self, loss, x, y):
        net = convnet(1)
        value = drawn(loss, net, x, y % 2)

        class Two(nn.Module):
            def forward(self, x):
                z = net(x)
                return torch.cat([torch.zeros_like(z), z], dim=1)

        same(value, drawn(loss, Two(), x, y % 2))

    @pytest.mark.parametrize("form", ["mapping", "attribute"])
    def test_logits_that_are_part_of_an_answer(self, loss, form, x, y):
        net = convnet()
        same(drawn(loss, Answering(net, form), x, y), drawn(loss, net, x, y))

    def test_an_empty_batch(self, loss, x, y):
        with pytest.raises(ValueError, match="at least one sample"):
            loss(convnet(), x[:0], y[:0])

    def test_a_batch_of_one(self, loss, x, y):
        assert loss(convnet().train(), x[:1], y[:1]).isfinite()

    def test_other_units_give_the_same_value(self, loss, x, y):
        net = convnet(dtype=torch.float64)
        x = x.double()
        value = drawn(scaled(loss, 255), Smaller(net), 255 * x, y)
        same(value, drawn(loss, net, x, y), rtol=1e-7, atol=1e-9)

    def test_float64(self, loss, x, y):
        net = convnet(dtype=torch.float64)
        value = drawn(loss, net, x.double(), y)
        assert value.dtype == torch.float64
        value.backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())

    def test_16_bits(self, loss, x, y):
        net = convnet(dtype=torch.bfloat16)
        value = drawn(loss, net, x.bfloat16(), y)
        assert value.dtype == torch.float32
        value.backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())

    def test_autocast_lets_every_parameter_learn(self, loss, x, y):
        net = convnet()
        with torch.autocast("cpu", torch.bfloat16):
            value = drawn(loss, net, x, y)
        assert value.dtype == torch.float32
        value.backward()
        assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in net.parameters())

    def test_losses_add_up(self, loss, x, y):
        net = convnet()
        size = net.head.weight.square().sum()
        total = 2 * loss + (lambda module, x, y: module.head.weight.square().sum())
        same(drawn(total, net, x, y), 2 * drawn(loss, net, x, y) + size)

    def test_copies_and_pickles_are_the_same_loss(self, loss, x, y):
        net = convnet()
        again = pickle.loads(pickle.dumps(loss))
        assert repr(again) == repr(loss)
        same(drawn(again, net, x, y), drawn(loss, net, x, y), rtol=0, atol=0)

    def test_a_small_step_down_the_gradient_is_a_step_down(self, loss, x, y):
        net, x = convnet(dtype=torch.float64), x.double()
        value = drawn(loss, net, x, y)
        parameters = list(net.parameters())
        grads = torch.autograd.grad(value, parameters)
        length = 0.01 * value.item() / sum(g.square().sum() for g in grads)
        with torch.no_grad():
            for p, g in zip(parameters, grads, strict=True):
                p -= length * g
        assert 0.95 < drawn(loss, net, x, y) / value < 0.999
